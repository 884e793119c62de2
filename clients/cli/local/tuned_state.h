// Tuned initial states (worker/model/time_state.h) as contexts of no tokens.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_TUNED_STATE_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_TUNED_STATE_H_

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

// Whether a file should be read as a tuned state and not as an exported context: every .pth file, and safetensors files
// that have nothing else. What cannot be opened is none.
bool IsTunedState(const std::string& path);

// The exchange file (coordinator/store/exchange.h) of the state as a context of this model at position 0: the file's
// WKV states, and zeros for all else. FAILED_PRECONDITION if the model has no WKV states; else as Checkpoint::Open and
// ReadTimeStates.
absl::StatusOr<std::string> TunedStateExchange(const std::string& path, const ContextModel& model);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_TUNED_STATE_H_
