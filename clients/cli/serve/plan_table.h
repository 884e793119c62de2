// What `goldfinch plan` prints.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_PLAN_TABLE_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_PLAN_TABLE_H_

#include <string>
#include <vector>

#include "coordinator/planner/planner.h"
#include "nlohmann/json.hpp"

namespace goldfinch {

struct PlannedPipeline {
  std::string workers;                     // what they are: "this machine's, in 3 parts"
  std::string links;                       // how fast, and how that is known
  std::vector<WorkerResources> resources;  // [stages]; their models are those of the plan
  Partition partition;
  std::vector<SplitEstimate> splits;  // the chosen one, then others, as of CompareSplits
};

std::string PlanTable(const PlannedPipeline& plan);
nlohmann::json PlanJson(const PlannedPipeline& plan);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_PLAN_TABLE_H_
