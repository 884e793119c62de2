// From the messages of generate.proto to requests in tokens. Every limit that the proto documents is kept here, and
// nowhere else. Errors are INVALID_ARGUMENT and name the field, its value and the limit.
#ifndef GOLDFINCH_COORDINATOR_GRPC_VALIDATION_H_
#define GOLDFINCH_COORDINATOR_GRPC_VALIDATION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/dispatcher.h"
#include "tokenizer/text_stream.h"

namespace goldfinch {

namespace v1 {
class DetokenizeRequest;
class DetokenizeResponse;
class GenerateRequest;
class ScoreRequest;
}  // namespace v1

// `id` of the request is what the client gave, and may be empty; there is no deadline.
struct ValidGenerate {
  Request request;
  bool has_seed = false;  // else the seed is the caller's to draw
  TextStream text;        // of one sample
};

// All are pure and thread-safe. Time and memory are linear in the message, but for those of a prompt that can never
// fit, which is refused before it is tokenized. That text is UTF-8 has been seen to by the protobuf parser.

absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& message, const ServedModel& model);
absl::StatusOr<Request> ValidateScore(const v1::ScoreRequest& message, const ServedModel& model);
// At most `bytes_max` of text and raw bytes together.
absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& message, const ServedModel& model,
                                                  int64_t bytes_max);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_VALIDATION_H_
