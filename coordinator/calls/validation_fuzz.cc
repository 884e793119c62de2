// Requests from bytes: whatever is in them, what validation lets through keeps every limit.
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "coordinator/calls/request_limits.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/calls/validation.h"
#include "coordinator/calls/wire_limits.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace goldfinch {
namespace {

constexpr size_t kMessageBytesMax = 512 << 10;  // of one with as many entries as there may be, besides their bytes

void CheckTokens(const std::vector<int32_t>& ids) {
  GF_CHECK(!ids.empty());
  for (const int32_t id : ids) {
    GF_CHECK(id >= 0 && id < kTestVocabSize) << id;
  }
}

void CheckCommon(const Request& request) {
  CheckTokens(request.prompt);
  GF_CHECK_LE(request.id.size(), size_t{128});
  GF_CHECK(request.priority >= -kPriorityMax && request.priority <= kPriorityMax);
}

// Reads a message as the service does. What is let through takes memory in proportion to its bytes.
template <typename Message>
bool Read(const std::string& bytes, Message* message) {
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  if (!CheckWire(*Message::descriptor(), &stream).ok()) return false;
  if (!message->ParseFromString(bytes)) return false;
  GF_CHECK_LE(message->SpaceUsedLong(), kMessageBytesMax + 16 * bytes.size());
  return true;
}

void FuzzGenerate(const std::string& bytes, const ServedModel& model) {
  v1::GenerateRequest message;
  if (!Read(bytes, &message)) return;
  GF_CHECK_LE(message.stop_size(), kStopsMax);
  GF_CHECK_LE(message.sampling().logit_bias_size(), kBiasesMax);
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
  if (!Read(bytes, &message)) return;
  GF_CHECK_LE(message.continuations_size(), kContinuationsMax);
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
  if (!Read(bytes, &message)) return;
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
