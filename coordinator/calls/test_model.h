// A served model for tests: single bytes and a few words.
#ifndef GOLDFINCH_COORDINATOR_CALLS_TEST_MODEL_H_
#define GOLDFINCH_COORDINATOR_CALLS_TEST_MODEL_H_

#include <memory>
#include <string>

#include "base/check.h"
#include "coordinator/scheduler/dispatcher.h"
#include "protos/generate.pb.h"
#include "tokenizer/open.h"
#include "tokenizer/test_vocabulary.h"

namespace goldfinch {

inline constexpr int kTestVocabSize = 270;     // ids 262 to 269 have no text
inline constexpr int kTestMaxModelLen = 1000;  // tokens

// Byte b is id b + 1; 257 " the", 258 "ab", 259 "bc", 260 "caf\xc3", 261 "\xa9".
inline std::shared_ptr<const ServedModel> MakeTestModel() {
  const std::string words = "257 ' the' 4\n258 'ab' 2\n259 'bc' 2\n260 b'caf\\xc3' 4\n261 b'\\xa9\\xa9' 2\n";
  auto tokenizer = Tokenizer::FromText(SingleByteLines() + words, "test vocabulary");
  GF_CHECK(tokenizer.ok()) << tokenizer.status();
  auto info = std::make_shared<v1::GetModelInfoResponse>();
  info->set_name("test");
  info->set_vocab_size(kTestVocabSize);
  info->set_max_model_len(kTestMaxModelLen);
  auto model = std::make_shared<ServedModel>();
  model->vocabulary = MakeSamplerVocabulary(**tokenizer, kTestVocabSize);
  model->tokenizer = *std::move(tokenizer);
  model->info = std::move(info);
  return model;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_TEST_MODEL_H_
