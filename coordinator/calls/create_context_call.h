// One call that reads a text and keeps it: Contexts.Create and Contexts.Append.
#ifndef GOLDFINCH_COORDINATOR_CALLS_CREATE_CONTEXT_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_CREATE_CONTEXT_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "coordinator/calls/request_call.h"
#include "protos/contexts.pb.h"

namespace goldfinch {

class CreateContextCall final : public RequestCall {
 public:
  // Reads what the client sent, and makes of it a request with keep_as that samples nothing. Begin calls it once.
  using Read = absl::AnyInvocable<absl::StatusOr<Request>(const ServedModel& model)>;

  CreateContextCall(CallEnvironment* environment, const char* method, Caller caller, Deadline deadline, Read read,
                    CallStream* stream)
      : RequestCall(environment, method, std::move(caller), deadline, stream), read_(std::move(read)) {}

  void OnContext(int64_t tokens) override;
  void OnProgress(int64_t prompt_tokens_done) override;
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int, Finish) override {}
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override;
  void OnKept(const NamedContext& context) override;

 private:
  absl::StatusOr<Request> Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) override;
  const google::protobuf::MessageLite& message() const override { return message_; }
  bool TakeMessage() override;

  Read read_;
  v1::CreateContextResponse message_;  // belongs to the write under way; guarded by mutex_ while there is none

  // Guarded by mutex_.
  uint64_t prompt_tokens_ = 0;  // with those of the context that it goes on from
  std::optional<int64_t> progress_;
  std::optional<v1::Context> context_;
  bool first_sent_ = false;
  bool last_sent_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_CREATE_CONTEXT_CALL_H_
