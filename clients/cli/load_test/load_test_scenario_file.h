// Reads the file of a scenario.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_FILE_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/load_test/load_test_scenario.pb.h"

namespace goldfinch {

// The scenario with the variant of that name applied, unless `variant` is empty; its `variants` are empty. All that
// load_test_scenario.proto says of a scenario is true of it. INVALID_ARGUMENT names the file and, where one is to
// blame, the line and the field; NOT_FOUND and PERMISSION_DENIED as ReadSmallFile;
// UsageError if there is no such variant.
absl::StatusOr<scenario::Scenario> ReadScenario(const std::string& path, const std::string& variant);

// The same for the text of a file.
absl::StatusOr<scenario::Scenario> ParseScenario(const std::string& path, const std::string& text,
                                                 const std::string& variant);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCENARIO_FILE_H_
