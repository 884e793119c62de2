// What a scenario has shown, for people and for machines.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_REPORT_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/load_test/load_test_scenario.pb.h"
#include "clients/cli/load_test/load_test_stats.h"
#include "nlohmann/json_fwd.hpp"
#include "protos/generate.pb.h"

namespace goldfinch {

// What the server's memory was used for during a run, from looks at it at regular times. A share of the cache is idle
// if no sequence has reserved it, and a share of the workers' memory if it holds neither weights nor anything of a
// sequence that runs.
class MemoryUse {
 public:
  void Add(const v1::GetClusterInfoResponse& cluster);

  int64_t looks() const { return looks_; }
  std::string Line() const;
  nlohmann::json Json() const;

 private:
  int64_t looks_ = 0;
  int64_t waiting_looks_ = 0;  // during which requests waited
  double idle_sum_ = 0;        // of the idle shares
  double idle_waiting_sum_ = 0;
  double idle_least_ = 1;
  double memory_idle_sum_ = 0;
  uint64_t cache_tokens_max_ = 0;  // what the caches hold, of the latest look
  uint64_t sequences_max_ = 0;     // slots, of the latest look
  uint64_t memory_bytes_ = 0;      // of all workers of groups, of the latest look
  uint64_t reserved_bytes_ = 0;    // of these, of the latest look
  // The most at any look.
  uint64_t sequences_ = 0;
  uint64_t requests_waiting_ = 0;
  uint64_t cache_bytes_ = 0;
  uint64_t state_bytes_ = 0;
  uint64_t gold_kept_bytes_ = 0;
};

struct GroupResult {
  scenario::ClientGroup settings;
  std::optional<LoadTestStats> quiet;  // if it had a quiet run
  LoadTestStats together;
};

struct ScenarioResult {
  scenario::Scenario scenario;
  std::string variant;  // empty: none
  uint64_t seed = 0;
  v1::GetModelInfoResponse model;
  int64_t max_concurrency = 0;  // requests that may run at once
  int64_t held = 0;             // requests that were sent late because of it
  int stages = 0;               // of all groups of workers; 0: not known
  double quiet_seconds = 0;
  double together_seconds = 0;
  std::vector<GroupResult> groups;
  MemoryUse memory;            // during the run together
  absl::Status memory_status;  // why `memory` is not known, if it has no looks

  int64_t finished() const;  // requests, of the quiet runs too
  int64_t failed() const;
  absl::Status first_error() const;
};

struct AimResult {
  scenario::Aim aim;
  std::optional<double> seconds;        // not set: nothing was measured
  std::optional<double> limit_seconds;  // not set: nothing was measured in the quiet run
  bool met = false;

  std::string Line() const;
};

// One for each aim of the scenario.
std::vector<AimResult> CheckAims(const ScenarioResult& result);

std::string ScenarioTable(const ScenarioResult& result);
nlohmann::json ScenarioJson(const ScenarioResult& result);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_REPORT_H_
