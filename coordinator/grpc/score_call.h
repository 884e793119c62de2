// goldfinch.v1.Goldfinch.Score, one call of it.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SCORE_CALL_H_
#define GOLDFINCH_COORDINATOR_GRPC_SCORE_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "coordinator/grpc/call.h"
#include "protos/generate.pb.h"

namespace goldfinch {

class ScoreCall final : public Call {
 public:
  ScoreCall(CallEnvironment* edge, grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
            CallStream* stream)
      : Call(edge, "Score", context, message, stream) {}

  void OnProgress(int64_t prompt_tokens_done) override;
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int sample, Finish finish) override;
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override;

 private:
  struct Part {
    v1::ScoreResponse response;
    int64_t bytes = 0;  // about
  };

  absl::StatusOr<Request> Prepare(const grpc::ByteBuffer& message, std::shared_ptr<const ServedModel> model,
                                  int64_t* buffer_max) override;
  const google::protobuf::MessageLite& message() const override { return message_; }
  bool TakeMessage() override;
  // The response that takes `bytes` more, of token `number` of a text.
  Part& PartFor(int continuation, int64_t number, int64_t bytes);

  v1::ScoreResponse message_;  // of the write under way, or else under mutex_

  // Guarded by mutex_.
  std::deque<Part> parts_;
  bool first_sent_ = false;
  bool usage_sent_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SCORE_CALL_H_
