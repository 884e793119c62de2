// One call of Score: log-probabilities become messages of a bounded size.
#ifndef GOLDFINCH_COORDINATOR_CALLS_SCORE_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_SCORE_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "coordinator/calls/request_call.h"
#include "protos/generate.pb.h"

namespace goldfinch {

class ScoreCall final : public RequestCall {
 public:
  // Reads what the client sent. Begin calls it once.
  using Read = absl::AnyInvocable<absl::Status(v1::ScoreRequest* message)>;

  ScoreCall(CallEnvironment* environment, Caller caller, Deadline deadline, Read read, CallStream* stream)
      : RequestCall(environment, "Score", std::move(caller), deadline, stream), read_(std::move(read)) {}

  void OnProgress(int64_t prompt_tokens_done) override;
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int sample, Finish finish) override;
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override;

 private:
  struct Part {
    v1::ScoreResponse response;
    int64_t bytes = 0;  // an estimate
  };

  absl::StatusOr<Request> Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) override;
  const google::protobuf::MessageLite& message() const override { return message_; }
  bool TakeMessage() override;
  // The response that token `number` of a text goes into, which takes `bytes` more.
  Part& PartFor(int continuation, int64_t number, int64_t bytes);

  Read read_;
  v1::ScoreResponse message_;  // belongs to the write under way; guarded by mutex_ while there is none

  // Guarded by mutex_.
  std::deque<Part> parts_;
  bool first_sent_ = false;
  bool usage_sent_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_SCORE_CALL_H_
