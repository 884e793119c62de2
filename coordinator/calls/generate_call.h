// One call of Generate: tokens become text and messages.
#ifndef GOLDFINCH_COORDINATOR_CALLS_GENERATE_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_GENERATE_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "coordinator/calls/request_call.h"
#include "protos/generate.pb.h"
#include "tokenizer/text_stream.h"

namespace goldfinch {

class GenerateCall final : public RequestCall {
 public:
  // Reads what the client sent. Begin calls it once.
  using Read = absl::AnyInvocable<absl::Status(v1::GenerateRequest* message)>;

  GenerateCall(CallEnvironment* environment, Caller caller, Deadline deadline, Read read, CallStream* stream)
      : RequestCall(environment, "Generate", std::move(caller), deadline, stream), read_(std::move(read)) {}

  void OnContext(int64_t tokens) override;
  void OnProgress(int64_t prompt_tokens_done) override;
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int sample, Finish finish) override;
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override;

 private:
  struct Sample {
    TextStream text;
    v1::GenerateResponse next;  // what was delivered since the last message
    bool queued = false;        // in `queue_`
  };

  absl::StatusOr<Request> Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) override;
  const google::protobuf::MessageLite& message() const override { return message_; }
  bool TakeMessage() override;
  // Puts the next response into `message_`. Returns false if there is none.
  bool TakeResponse();
  void Queue(int index);

  Read read_;
  v1::GenerateResponse message_;  // belongs to the write under way; guarded by mutex_ while there is none

  // Set by Prepare.
  std::shared_ptr<const ServedModel> model_;
  std::vector<int32_t> stop_ids_;  // ascending
  uint64_t seed_ = 0;

  // Guarded by mutex_.
  uint64_t prompt_tokens_ = 0;  // with those of the context
  std::vector<Sample> samples_;
  std::deque<int> queue_;  // samples with something to send, the longest waiting first
  std::optional<int64_t> progress_;
  int samples_left_ = 0;
  bool first_sent_ = false;
  bool usage_sent_ = false;
};

// Parts of the messages of both streaming calls.
v1::Token ToMessage(const OutputToken& token);
v1::Usage ToMessage(const RequestUsage& usage);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_GENERATE_CALL_H_
