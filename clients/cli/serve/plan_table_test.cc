#include "clients/cli/serve/plan_table.h"

#include <string>
#include <vector>

#include "coordinator/planner/planner_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

TEST(PlanTableTest, ShowsTheSplitBesideOthersAndWhatCrossesEachBoundary) {
  const cluster::v1::Described model = Released();
  const ModelMemory memory = ReadModelMemory(model);
  PlannedPipeline plan;
  plan.workers = "three";
  plan.links = "1.25 GB/s, assumed for tcp";
  plan.resources.assign(3, kMachine);
  for (WorkerResources& worker : plan.resources) worker.model = &memory;
  PartitionOptions options = ReleasedOptions();
  options.links.bytes_per_second = AssumedLinkSpeed("tcp");
  const auto partition = PartitionLayers(model, plan.resources, options);
  ASSERT_TRUE(partition.ok()) << partition.status();
  plan.partition = *partition;
  plan.splits = CompareSplits(model, plan.resources, options, plan.partition);

  const std::string table = PlanTable(plan);
  EXPECT_THAT(table,
              HasSubstr("split    0-15,16-19,20-23: a stage begins at the border, layer 16: it takes 2.3 % longer than "
                        "0-17,18-20,21-23"));
  EXPECT_THAT(table, HasSubstr("0-15,16-19,20-23  as chosen  "));
  EXPECT_THAT(table, HasSubstr("\n0-17,18-20,21-23  -2.3 %"));
  EXPECT_THAT(table, HasSubstr(", compressed 256, ids 2 B a token\n"));
  EXPECT_THAT(table, HasSubstr("22.7 GB of 22.7 GB  16% full, 84% shared  "));

  const nlohmann::json json = PlanJson(plan);
  EXPECT_EQ(json["splits"].size(), plan.splits.size());
  EXPECT_EQ(json["splits"][0]["first_layers"], (std::vector<int>{0, 16, 20}));
  EXPECT_EQ(json["splits"][0]["stages"][1]["received"]["compressed"], (32'768 + 511) * 256);
  EXPECT_EQ(json["traffic"]["sequences"], 16);
}

TEST(PlanTableTest, SplitsAreWrittenAsTheFlagTakesThem) {
  EXPECT_EQ(SplitText({0}, 6), "0-5");
  EXPECT_EQ(SplitText({0, 4, 5}, 6), "0-3,4-4,5-5");
}

}  // namespace
}  // namespace goldfinch
