// Facts about token ids that several rooms rely on.
#ifndef GOLDFINCH_BASE_TOKEN_IDS_H_
#define GOLDFINCH_BASE_TOKEN_IDS_H_

#include <cstdint>

namespace goldfinch {

// The id that ends a text, in every vocabulary.
inline constexpr int32_t kEndOfTextId = 0;

// Bytes of one id where ids are stored or sent, which is in the compressed cache and in the steps that the coordinator
// sends to the workers: 2 where every id of the vocabulary fits them, else 4.
constexpr int IdBytes(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }
// The type of such ids, as messages and files name it.
constexpr const char* IdTypeName(int64_t vocab_size) { return IdBytes(vocab_size) == 2 ? "u16" : "i32"; }

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TOKEN_IDS_H_
