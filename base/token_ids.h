// How wide a token id is where ids are stored or sent: in the compressed cache, and in the steps that the coordinator
// sends to the workers.
#ifndef GOLDFINCH_BASE_TOKEN_IDS_H_
#define GOLDFINCH_BASE_TOKEN_IDS_H_

#include <cstdint>

namespace goldfinch {

// Bytes of one id: 2 where every id of the vocabulary fits them, else 4.
constexpr int IdBytes(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TOKEN_IDS_H_
