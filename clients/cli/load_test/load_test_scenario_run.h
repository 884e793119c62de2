// goldfinch load-test --scenario.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_RUN_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_RUN_H_

#include "absl/status/status.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

// Runs options.scenario and prints its report. Returns the first error if a request failed; FAILED_PRECONDITION if an
// aim was missed and options.strict is set.
absl::Status RunScenario(const LoadTestOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_RUN_H_
