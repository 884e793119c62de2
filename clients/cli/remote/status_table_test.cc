#include "clients/cli/remote/status_table.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::GetClusterInfoResponse Cluster() {
  v1::GetClusterInfoResponse cluster;
  cluster.set_uptime_seconds(100);
  cluster.set_requests_running(2);
  cluster.set_requests_waiting(1);
  cluster.set_prompt_tokens(50'000);
  cluster.set_completion_tokens(1'000);
  cluster.set_cache_bytes(1'500'000);
  cluster.set_gold_kept_bytes(2'500'000);
  v1::GroupInfo& group = *cluster.add_groups();
  group.set_state(v1::READY);
  group.set_generation(3);
  group.set_steps(1234);
  v1::StageInfo& stage = *group.add_stages();
  stage.set_worker("w0");
  stage.set_address("10.0.0.1:7");
  stage.set_device("cpu");
  stage.set_last_layer(4);
  stage.set_busy_seconds(60);
  stage.set_bubble_seconds(10);
  stage.set_idle_seconds(30);
  stage.mutable_received()->set_compressed(20'000'000);
  return cluster;
}

TEST(StatusTableTest, ShowsWhatIsSinceTheStart) {
  v1::GetModelInfoResponse model;
  model.set_name("demo");
  model.set_layers(6);
  model.set_gold_layers(2);
  model.set_width(128);
  model.set_vocab_size(257);
  model.set_vocabulary("bytes");
  model.set_max_model_len(1'048'576);
  v1::GetClusterInfoResponse cluster = Cluster();
  cluster.add_spare_workers("s1");
  cluster.add_spare_workers("s2");
  cluster.mutable_groups(0)->set_plan("a stage begins at the border\n");
  EXPECT_EQ(
      StatusTable(&model, cluster, nullptr),
      "model     demo, 6 layers (2 GOLD), width 128, vocabulary bytes of 257; at most 1,048,576 tokens a sequence\n"
      "server    up 100 s, group generation 0\n"
      "requests  2 running, 1 waiting\n"
      "tokens    read 50,000, 500/s; generated 1,000, 10/s\n"
      "memory    caches 1.5 MB, kept rows 2.5 MB, states 0 B\n"
      "spare     s1, s2\n"
      "\n"
      "replica 0: ready, generation 3\n"
      "1,234 steps, 0 in flight; 0 of 0 sequences; cache reserved for 0 of 0 tokens\n"
      "split: a stage begins at the border\\x0a\n"
      "stage  worker  address     device  layers  weights  reserved    busy   bubble  idle   hidden in  "
      "compressed in  ids in  heartbeat\n"
      "0      w0      10.0.0.1:7  cpu     0-3     0 B      0 B of 0 B  60.0%  10.0%   30.0%  0 B        "
      "20 MB          0 B     0.0 s\n");
}

TEST(StatusTableTest, ShowsTheTrafficAndWhatItsSplitMisses) {
  v1::GetClusterInfoResponse cluster = Cluster();
  EXPECT_THAT(StatusTable(nullptr, cluster, nullptr), Not(HasSubstr("traffic   ")));
  v1::TrafficInfo& traffic = *cluster.mutable_traffic();
  traffic.set_prompt_tokens(1'200);
  traffic.set_output_tokens(300);
  traffic.set_context_tokens(1'350);
  traffic.set_sequences(5);
  v1::GroupInfo& group = *cluster.mutable_groups(0);
  group.mutable_expected_traffic()->set_prompt_tokens(32'768);
  group.set_best_split("0-3,4-5");
  group.set_split_gain(0.123);
  const std::string text = StatusTable(nullptr, cluster, nullptr);
  EXPECT_THAT(text, HasSubstr("traffic   prompts of 1,200 tokens, outputs of 300, in contexts of 1,350, 5 sequences at "
                              "a time\n"));
  EXPECT_THAT(text, HasSubstr("planned for: prompts of 32,768 tokens, outputs of 0, in contexts of 0, "));
  EXPECT_THAT(text, HasSubstr("for the traffic, the split 0-3,4-5 would take 12.3 % less time\n"));
  group.set_split_gain(0);
  EXPECT_THAT(StatusTable(nullptr, cluster, nullptr), HasSubstr("no other split would be better for the traffic\n"));
}

TEST(StatusTableTest, ShowsLinksThatHaveBeenMeasured) {
  v1::GetClusterInfoResponse cluster = Cluster();
  EXPECT_THAT(StatusTable(nullptr, cluster, nullptr), Not(HasSubstr("round trip")));
  v1::LinkInfo& link = *cluster.mutable_groups(0)->mutable_stages(0)->add_links();
  link.set_stage(1);
  link.set_bytes_per_second(1.2e9);
  link.set_round_trip_seconds(0.00025);
  cluster.mutable_groups(0)->mutable_stages(0)->add_links()->set_stage(2);
  EXPECT_THAT(StatusTable(nullptr, cluster, nullptr), HasSubstr("link          speed     round trip\n"
                                                                "stage 0 to 1  1.2 GB/s  0.25 ms\n"
                                                                "stage 0 to 2  -         0 ms\n"));
}

// The memory that stages have reserved, by use, and the caches beside those of a transformer of the same shape.
TEST(StatusTableTest, ShowsMemory) {
  v1::GetClusterInfoResponse cluster = Cluster();
  cluster.set_cache_bytes(258 * 64);
  cluster.set_transformer_cache_bytes(196'608 * 64);
  v1::GroupInfo& group = *cluster.mutable_groups(0);
  group.add_stages()->set_first_layer(4);
  const auto fill = [&](int stage, const std::vector<std::pair<std::string, uint64_t>>& parts) {
    v1::StageInfo& to = *group.mutable_stages(stage);
    to.set_memory_bytes(20'000'000);
    uint64_t sum = 0;
    for (const auto& [name, bytes] : parts) {
      to.add_memory()->set_name(name);
      to.mutable_memory()->rbegin()->set_bytes(bytes);
      sum += bytes;
    }
    to.set_reserved_bytes(sum);
  };
  fill(0, {{"weights", 12'000'000}, {"WKV states", 500}, {"channels", 0}, {"compressed cache", 0}});
  fill(1, {{"weights", 3'000'000}, {"WKV states", 0}, {"channels", 0}, {"compressed cache", 16'512}});
  const std::string text = StatusTable(nullptr, cluster, nullptr);
  EXPECT_THAT(text, HasSubstr("memory    caches 16.5 kB (762 times less than full keys and values), "
                              "kept rows 2.5 MB, states 0 B\n"));
  EXPECT_THAT(text, HasSubstr("memory            stage 0  stage 1\n"
                              "weights           12 MB    3 MB\n"
                              "WKV states        500 B    0 B\n"
                              "compressed cache  0 B      16.5 kB\n"
                              "left              8 MB     17 MB\n"));
  EXPECT_THAT(text, Not(HasSubstr("channels")));
}

TEST(StatusTableTest, ShowsRatesSinceTheLastLook) {
  const v1::GetClusterInfoResponse before = Cluster();
  v1::GetClusterInfoResponse now = Cluster();
  now.set_uptime_seconds(110);
  now.set_prompt_tokens(50'500);
  now.set_completion_tokens(1'010);
  v1::StageInfo& stage = *now.mutable_groups(0)->mutable_stages(0);
  stage.set_busy_seconds(62);
  stage.set_bubble_seconds(11);
  stage.set_idle_seconds(37);
  stage.mutable_received()->set_compressed(20'200'000);
  const std::string table = StatusTable(nullptr, now, &before);
  EXPECT_THAT(table, HasSubstr("model     not known yet"));
  EXPECT_THAT(table, HasSubstr("read 50,500, 50/s; generated 1,010, 1/s"));
  EXPECT_THAT(table, HasSubstr("20.0%  10.0%   70.0%"));
  EXPECT_THAT(table, HasSubstr("20.2 MB (20 kB/s)"));
}

TEST(StatusTableTest, CountersThatStartedAgain) {
  v1::GetClusterInfoResponse before = Cluster();
  v1::GetClusterInfoResponse now = Cluster();
  now.set_uptime_seconds(110);
  now.mutable_groups(0)->set_generation(4);  // a new group
  now.mutable_groups(0)->mutable_stages(0)->set_busy_seconds(90);
  now.mutable_groups(0)->mutable_stages(0)->set_bubble_seconds(0);
  now.mutable_groups(0)->mutable_stages(0)->set_idle_seconds(10);
  EXPECT_THAT(StatusTable(nullptr, now, &before), HasSubstr("90.0%  0.0%    10.0%"));
  before.set_uptime_seconds(1000);  // the server before a restart
  before.set_prompt_tokens(0);
  now.set_uptime_seconds(10);
  EXPECT_THAT(StatusTable(nullptr, now, &before), HasSubstr("read 50,000, 5000/s"));
}

TEST(StatusTableTest, GroupsThatAreNotReady) {
  v1::GetClusterInfoResponse cluster;
  v1::GroupInfo& group = *cluster.add_groups();
  group.set_replica(1);
  group.set_state(v1::WAITING_FOR_WORKERS);
  group.set_message("needs 3 workers,\nhas 1");
  cluster.set_draining(true);
  const std::string table = StatusTable(nullptr, cluster, nullptr);
  EXPECT_THAT(table, HasSubstr("replica 1: waiting for workers, generation 0: needs 3 workers,\\x0ahas 1\n"));
  EXPECT_THAT(table, HasSubstr("draining: it takes no new requests"));
  EXPECT_THAT(table, Not(HasSubstr("busy")));
}

TEST(MessageJsonTest, HasEveryFieldInItsType) {
  const nlohmann::json json = MessageJson(Cluster());
  EXPECT_EQ(json["uptime_seconds"], 100.0);
  EXPECT_EQ(json["prompt_tokens"], 50'000);
  EXPECT_EQ(json["draining"], false);
  EXPECT_EQ(json["spare_workers"], nlohmann::json::array());
  EXPECT_EQ(json["groups"][0]["state"], "READY");
  EXPECT_EQ(json["groups"][0]["stages"][0]["received"]["compressed"], 20'000'000);
  EXPECT_EQ(json["groups"][0]["stages"][0]["worker"], "w0");
  EXPECT_EQ(json.size(), 14u);
}

}  // namespace
}  // namespace goldfinch
