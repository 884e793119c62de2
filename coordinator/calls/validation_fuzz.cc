// Requests from bytes: whatever is in them, what validation lets through keeps every limit.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "coordinator/calls/request_limits.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/calls/validation.h"
#include "coordinator/calls/wire_limits.h"
#include "coordinator/contexts/segment_key.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "protos/contexts.pb.h"

namespace goldfinch {
namespace {

constexpr size_t kMessageBytesMax = 512 << 10;  // of one with as many entries as there may be, besides their bytes

void CheckTokens(const std::vector<int32_t>& ids, bool may_be_empty = false) {
  GF_CHECK(may_be_empty || !ids.empty());
  for (const int32_t id : ids) {
    GF_CHECK(id >= 0 && id < kTestVocabSize) << id;
  }
}

void CheckName(const std::string& name) {
  GF_CHECK(!name.empty() && name.size() <= kContextTextBytesMax);
  GF_CHECK(std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }));
}

void CheckKeepAs(const Request::KeepAs& keep_as) {
  CheckName(keep_as.name);
  if (!keep_as.expire_after_seconds) return;
  GF_CHECK(*keep_as.expire_after_seconds > 0 && *keep_as.expire_after_seconds <= kExpireAfterSecondsMax);
}

void CheckCommon(const Request& request) {
  CheckTokens(request.prompt, !request.context.empty());
  if (!request.context.empty()) CheckName(request.context);
  GF_CHECK(!request.context_tokens || (!request.context.empty() && *request.context_tokens > 0));
  if (request.keep_as) {
    CheckKeepAs(*request.keep_as);
    GF_CHECK_EQ(request.generate->samples, 1);
  }
  GF_CHECK_LE(request.breakpoints.size(), size_t{kBreakpointsMax});
  for (const int64_t at : request.breakpoints) {
    GF_CHECK(at > 0 && at < static_cast<int64_t>(request.prompt.size()));
  }
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

template <typename Message>
void FuzzReading(const std::string& bytes, const ServedModel& model,
                 absl::StatusOr<Request> (*validate)(const Message&, const ServedModel&)) {
  Message message;
  if (!Read(bytes, &message)) return;
  const absl::StatusOr<Request> request = validate(message, model);
  if (!request.ok()) {
    GF_CHECK(request.status().code() == absl::StatusCode::kInvalidArgument) << request.status();
    return;
  }
  CheckCommon(*request);
  GF_CHECK(!request->prompt.empty() && request->keep_as && request->generate->max_tokens == 0);
}

template <typename Message, typename Query>
void FuzzQuery(const std::string& bytes, absl::StatusOr<Query> (*validate)(const Message&)) {
  Message message;
  if (!Read(bytes, &message)) return;
  const absl::StatusOr<Query> query = validate(message);
  if (!query.ok()) {
    GF_CHECK(query.status().code() == absl::StatusCode::kInvalidArgument) << query.status();
    return;
  }
  if constexpr (requires { query->name; }) CheckName(query->name);
  if constexpr (requires { query->new_name; }) CheckName(query->new_name);
  if constexpr (requires { query->ids_max; }) {
    GF_CHECK(query->ids_begin >= 0 && query->ids_max >= 0 && query->ids_max <= kContextIdsMax);
  }
  if constexpr (requires { query->count; }) {
    GF_CHECK(query->count > 0 && query->count <= kContextPageMax);
  }
  if constexpr (requires { query->keep_as; }) {
    CheckName(query->context);
    CheckKeepAs(query->keep_as);
    GF_CHECK(!query->context_tokens || *query->context_tokens > 0);
  }
}

void FuzzFiles(const std::string& bytes) {
  v1::ExportContextRequest wanted;
  if (Read(bytes, &wanted)) {
    const absl::StatusOr<FileQuery> query = ValidateExportContext(wanted);
    if (query.ok()) {
      CheckName(query->context.name);
      GF_CHECK_GE(query->offset, 0);
      GF_CHECK(query->version.empty() || query->version.size() == kFileVersionDigits);
    }
  }
  v1::ImportContextRequest message;
  if (!Read(bytes, &message)) return;
  const absl::StatusOr<ImportPart> part = ValidateImportContext(&message);
  if (!part.ok()) {
    GF_CHECK(part.status().code() == absl::StatusCode::kInvalidArgument) << part.status();
    return;
  }
  GF_CHECK(!part->upload.empty() && part->upload.size() <= kUploadBytesMax);
  GF_CHECK(part->offset >= 0 && static_cast<int64_t>(part->data.size()) <= kTransferPieceBytes);
  if (part->last) CheckKeepAs(part->last->keep_as);
}

void FuzzContexts(const std::string& bytes, const ServedModel& model) {
  FuzzReading(bytes, model, &ValidateCreateContext);
  FuzzReading(bytes, model, &ValidateAppendContext);
  FuzzQuery(bytes, &ValidateGetContext);
  FuzzQuery(bytes, &ValidateListContexts);
  FuzzQuery(bytes, &ValidateForkContext);
  FuzzQuery(bytes, &ValidateRenameContext);
  FuzzQuery(bytes, &ValidatePinContext);
  FuzzQuery(bytes, &ValidateDeleteContext);
  FuzzFiles(bytes);
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
  goldfinch::FuzzContexts(bytes, *model);
  goldfinch::FuzzDetokenize(bytes, *model);
  return 0;
}
