#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "coordinator/shelves/shelf_group.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

// A cluster of workers with shelves, whose layers have one part each.
class ShelfCluster : public TestCluster {
 public:
  explicit ShelfCluster(MembershipOptions options) : TestCluster(WithSecret(std::move(options))) {
    for (auto& layer : *described.mutable_described()->mutable_layers()) layer.set_state_bytes(4 * 8);
  }

 private:
  static MembershipOptions WithSecret(MembershipOptions options) {
    options.secret = "a secret";
    options.cache_dtype = "f16";
    return options;
  }
};

void Add(TestCluster* cluster, uint64_t id, uint64_t shelf_bytes = 1 << 20) {
  cluster->edit_joined = [cluster](uint64_t worker, cluster::v1::Joined* joined) {
    const cluster::v1::Form& form = cluster->LastForm(worker);
    const int stage = static_cast<int>(form.stage()), layers = 6;
    const bool last = stage + 1 == form.first_layers_size();
    const int end = last ? layers : static_cast<int>(form.first_layers(stage + 1));
    for (int layer = static_cast<int>(form.first_layers(stage)); layer < end; ++layer) {
      cluster::v1::PartDescription& part = *joined->add_parts();
      part.mutable_part()->set_layer(layer);
      part.mutable_part()->set_kind("time_shift");
      part.set_dtype("f32");
      part.add_shape(8);
    }
    if (last) {
      cluster::v1::PartDescription& logits = *joined->add_parts();
      logits.mutable_part()->set_layer(layers - 1);
      logits.mutable_part()->set_kind("logits");
      logits.set_dtype("f32");
      logits.add_shape(10);
    }
    joined->set_numerics(worker % 2 == 1 ? "cpu-f32" : "cuda-bf16");
  };
  cluster->Add(id, [&](cluster::v1::Register& message) { message.set_shelf_bytes(shelf_bytes); });
}

std::string TokenOf(TestCluster& cluster, uint64_t worker) {
  return cluster.sent[worker].front().welcome().contexts_token();
}

// Only stages with GOLD layers keep the compressed cache: not the one that ends before the first of them.
TEST(MembershipShelvesTest, AStageCountsTheRowsThatItKeeps) {
  MembershipOptions options = TestCluster::Options(2);
  options.partition.split = {0, 3};
  options.partition.split_layers = 6;
  TestCluster cluster(options);
  cluster::v1::Described& model = *cluster.described.mutable_described();
  for (int layer = 0; layer < 3; ++layer) {
    model.mutable_layers(layer)->set_cache_bytes_per_token(100);
    model.mutable_memory()->mutable_layers(layer)->set_cache_bytes_per_token(100);
  }
  model.set_gold_layers(3);
  model.set_compressed_bytes_per_token(10);
  cluster.Add(1);
  cluster.Add(2);
  ASSERT_TRUE(cluster.membership.ready(0));
  const ShelfCapacity shelf = cluster.membership.Shelf(0);
  EXPECT_EQ(shelf.bytes_per_token, 310);
  EXPECT_DOUBLE_EQ(shelf.rows_share, 300.0 / 310);
}

TEST(MembershipShelvesTest, WorkersWithShelvesGetATokenOfTheirOwn) {
  ShelfCluster cluster(TestCluster::Options(1));
  std::set<std::string> tokens;
  for (uint64_t id = 1; id <= 3; ++id) {
    Add(&cluster, id);
    EXPECT_EQ(TokenOf(cluster, id).size(), 32u);
    tokens.insert(TokenOf(cluster, id));
  }
  EXPECT_EQ(tokens.size(), 3u);
  Add(&cluster, 4, /*shelf_bytes=*/0);
  EXPECT_EQ(TokenOf(cluster, 4), "");
  MembershipOptions options = TestCluster::Options(1);
  options.contexts = false;
  ShelfCluster without(options);
  Add(&without, 1);
  EXPECT_EQ(TokenOf(without, 1), "");
  EXPECT_THAT(tokens, Not(Contains(cluster.LastForm(1).transport_key()))) << "one secret has several uses";
}

TEST(MembershipShelvesTest, AReadyGroupKnowsWhatItsShelvesHold) {
  ShelfCluster cluster(TestCluster::Options(2));
  Add(&cluster, 1);
  Add(&cluster, 2);
  ASSERT_TRUE(cluster.membership.ready(0));
  const std::optional<ShelfGroup> shelves = cluster.membership.Shelves(0);
  ASSERT_TRUE(shelves);
  EXPECT_EQ(shelves->model.identity, (ContextIdentity{"f", "", "f16", "cpu-f32+cuda-bf16", kContextFormat}));
  EXPECT_EQ(shelves->model.vocab_size, 10);
  EXPECT_EQ(shelves->model.parts.size(), 6u);
  ASSERT_EQ(shelves->stages.size(), 2u);
  EXPECT_EQ(shelves->stages[1].worker, 2u);
  EXPECT_EQ(shelves->stages[1].name, "w2");
  EXPECT_TRUE(shelves->stages[1].has_logits);

  ShelfCluster silent(TestCluster::Options(2));
  for (uint64_t id = 1; id <= 2; ++id) silent.Add(id);
  ASSERT_TRUE(silent.membership.ready(0));
  EXPECT_FALSE(silent.membership.Shelves(0)) << "workers that say nothing of their parts";
}

TEST(MembershipShelvesTest, AWorkerWithOtherPartsDoesNotBecomeAStage) {
  ShelfCluster cluster(TestCluster::Options(1));
  cluster.edit_joined = [](uint64_t, cluster::v1::Joined* joined) {
    cluster::v1::PartDescription& part = *joined->add_parts();
    part.mutable_part()->set_layer(7);
    part.mutable_part()->set_kind("time_shift");
    part.set_dtype("f32");
    part.add_shape(8);
  };
  cluster.Add(1);
  EXPECT_FALSE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.log, Contains(HasSubstr("worker w1 sent Joined: parts: ")));
}

}  // namespace
}  // namespace goldfinch
