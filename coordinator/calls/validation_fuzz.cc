// Requests from bytes: whatever is in them, what validation lets through keeps every limit.
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/calls/validation.h"

namespace goldfinch {
namespace {

void CheckTokens(const std::vector<int32_t>& ids) {
  GF_CHECK(!ids.empty());
  for (const int32_t id : ids) {
    GF_CHECK(id >= 0 && id < kTestVocabSize) << id;
  }
}

void CheckCommon(const Request& request) {
  CheckTokens(request.prompt);
  GF_CHECK_LE(request.id.size(), size_t{128});
  GF_CHECK(request.priority >= -100 && request.priority <= 100);
}

void FuzzGenerate(const std::string& bytes, const ServedModel& model) {
  v1::GenerateRequest message;
  if (!message.ParseFromString(bytes)) return;
  absl::StatusOr<ValidGenerate> valid = ValidateGenerate(message, model);
  if (!valid.ok()) {
    GF_CHECK(valid.status().code() == absl::StatusCode::kInvalidArgument) << valid.status();
    return;
  }
  const Request& request = valid->request;
  CheckCommon(request);
  GF_CHECK(request.generate && !request.score);
  GF_CHECK(request.generate->samples >= 1 && request.generate->samples <= 64);
  GF_CHECK(request.generate->max_tokens >= 0);
  GF_CHECK_LE(static_cast<int64_t>(request.prompt.size()) + request.generate->max_tokens, kTestMaxModelLen);
  GF_CHECK(Validate(request.generate->sampling, *model.vocabulary).ok());
  if (!request.generate->stop_ids.empty()) CheckTokens(request.generate->stop_ids);
  std::string text;
  TextStream stream(valid->stops);
  stream.Append(bytes, &text);
  stream.Finish(&text);
}

void FuzzScore(const std::string& bytes, const ServedModel& model) {
  v1::ScoreRequest message;
  if (!message.ParseFromString(bytes)) return;
  const absl::StatusOr<Request> request = ValidateScore(message, model);
  if (!request.ok()) {
    GF_CHECK(request.status().code() == absl::StatusCode::kInvalidArgument) << request.status();
    return;
  }
  CheckCommon(*request);
  GF_CHECK(request->score && !request->generate);
  GF_CHECK(request->score->score_prompt || !request->score->continuations.empty());
  for (const std::vector<int32_t>& ids : request->score->continuations) {
    CheckTokens(ids);
    GF_CHECK_LE(request->prompt.size() + ids.size(), size_t{kTestMaxModelLen});
  }
}

void FuzzDetokenize(const std::string& bytes, const ServedModel& model) {
  v1::DetokenizeRequest message;
  if (!message.ParseFromString(bytes)) return;
  const auto response = Detokenize(message, model, 4096);
  if (!response.ok()) return;
  GF_CHECK_LE(response->ByteSizeLong(), size_t{4096});
}

}  // namespace
}  // namespace goldfinch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto& model = *new std::shared_ptr<const goldfinch::ServedModel>(goldfinch::MakeTestModel());
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  goldfinch::FuzzGenerate(bytes, *model);
  goldfinch::FuzzScore(bytes, *model);
  goldfinch::FuzzDetokenize(bytes, *model);
  return 0;
}
