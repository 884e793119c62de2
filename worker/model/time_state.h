// Tuned initial states ("state tuning"), as the RWKV community trains and exchanges them: for each recurrent layer a
// tensor blocks.N.att.time_state, the WKV state before the first token. Token shifts begin with zeros as ever.
//
// The training kernel reads it [head, value, key]: in wkv6state_cuda.cu (RWKV-LM, RWKV-PEFT) the thread of value i
// takes its states for the keys j from _s[h*N*N + i*N + j]. States of inference are [head, key, value], here as in
// ChatRWKV, whose API_DEMO_CHAT.py loads such a file with transpose(1, 2).
#ifndef GOLDFINCH_WORKER_MODEL_TIME_STATE_H_
#define GOLDFINCH_WORKER_MODEL_TIME_STATE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

// [H, N, N]: the WKV state of a sequence, from the values of a time_state of as many numbers.
std::vector<float> WkvOfTimeState(absl::Span<const float> time_state, int64_t heads, int64_t head_size);

// Whether a file has time_state tensors and nothing else.
bool HoldsTimeStatesAlone(const Checkpoint& file);

// The WKV state that a model has of a layer.
struct WkvLayer {
  int layer = 0;
  int64_t heads = 0;
  int64_t head_size = 0;
};

// The states of these layers, in their order, from a file that has the time_state of each of them and nothing else.
// INVALID_ARGUMENT names the file, the tensor, and what it is and should be: one of another name or layer, shape or
// type, one that is lacking, or a number that is not finite.
absl::StatusOr<std::vector<std::vector<float>>> ReadTimeStates(const Checkpoint& file,
                                                               absl::Span<const WkvLayer> layers);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_TIME_STATE_H_
