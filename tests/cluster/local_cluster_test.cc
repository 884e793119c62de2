// The whole service but its sockets: coordinator, scheduler, workers and the local transport.
#include "tests/cluster/local_cluster.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/cache_page.h"
#include "base/stage_memory.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/planner/stage_cost.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

constexpr char kDemoModel[] = "tests/demo_model/model.pth";
constexpr int kDemoLayers = 6;

std::vector<int32_t> Text(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

const char kFact[] = "And the number of Gershon was 4821. And it came to pass in those days, that the people went up. ";

TEST(LocalClusterTest, AnswersAreTheSameForAnySplitAndAnyCompany) {
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 9; ++i) {
    std::string text = absl::StrCat("Chapter ", i, ". ");
    for (int j = 0; j <= i / 4; ++j) text += kFact;
    prompts.push_back(Text(text));
  }
  const auto sampled = [](int i) {
    return [i](Request* request) {
      if (i % 2 == 0) return;
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = i;
    };
  };
  std::vector<std::vector<int32_t>> alone;
  {
    LocalCluster cluster(kDemoModel, 1);
    cluster.AwaitReady();
    for (int i = 0; i < 9; ++i) {
      const auto request = cluster.Generate(prompts[i], 12, sampled(i));
      ASSERT_TRUE(request->Wait().ok());
      alone.push_back(request->tokens());
    }
  }
  LocalCluster cluster(kDemoModel, 3);
  cluster.AwaitReady();
  std::vector<std::shared_ptr<WatchedRequest>> requests;
  for (int i = 0; i < 9; ++i) requests.push_back(cluster.Generate(prompts[i], 12, sampled(i)));
  for (int i = 0; i < 9; ++i) {
    ASSERT_TRUE(requests[i]->Wait().ok());
    EXPECT_EQ(requests[i]->tokens(), alone[i]) << i;
  }
  cluster.ExpectNothingHeld();
}

TEST(LocalClusterTest, SequencesThatDoNotFitTheCachesTogetherAreParkedAndGoOnExactly) {
  constexpr int kRequests = 2, kSamples = 2;
  const auto sampled = [](int i) {
    return [i](Request* request) {
      request->generate->samples = kSamples;
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = i;
      request->generate->sampling.banned_tokens = {0};  // none of them ends before it must
    };
  };
  std::vector<std::vector<int32_t>> roomy;
  for (const int64_t pages : {256, 24}) {
    LocalCluster cluster(kDemoModel, 2, [pages](CoordinatorOptions* options) {
      options->membership.partition.max_sequence_tokens = 1024;
      options->membership.partition.cache_tokens = pages * kCachePageTokens;
    });
    cluster.AwaitReady();
    std::vector<std::shared_ptr<WatchedRequest>> requests;
    for (int i = 0; i < kRequests; ++i) requests.push_back(cluster.Generate(Text("And it came to"), 600, sampled(i)));
    int parkings = 0;
    for (int i = 0; i < kRequests; ++i) {
      ASSERT_TRUE(requests[i]->Wait().ok());
      parkings += requests[i]->usage().parkings;
      for (int sample = 0; sample < kSamples; ++sample) {
        const std::vector<int32_t>& tokens = requests[i]->tokens(sample);
        ASSERT_EQ(tokens.size(), 600U);
        if (pages == 256) {
          roomy.push_back(tokens);
        } else {
          EXPECT_EQ(tokens, roomy[i * kSamples + sample]) << i << ", " << sample;
        }
      }
    }
    EXPECT_EQ(parkings > 0, pages == 24) << "each needs ten pages in the end";
    cluster.ExpectNothingHeld();
  }
}

TEST(LocalClusterTest, SamplesDrawAsRequestsOfTheirOwn) {
  LocalCluster cluster(kDemoModel, 2);
  cluster.AwaitReady();
  const auto sampling = [](uint64_t seed, int samples) {
    return [seed, samples](Request* request) {
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = seed;
      request->generate->samples = samples;
    };
  };
  const auto together = cluster.Generate(Text(kFact), 15, sampling(40, 4));
  ASSERT_TRUE(together->Wait().ok());
  for (int i = 0; i < 4; ++i) {
    const auto alone = cluster.Generate(Text(kFact), 15, sampling(40 + i, 1));
    ASSERT_TRUE(alone->Wait().ok());
    EXPECT_EQ(together->tokens(i), alone->tokens()) << i;
  }
  cluster.ExpectNothingHeld();
}

TEST(LocalClusterTest, OnlyCompressedRowsIdsAndTheTailCrossToTheGoldStage) {
  // 4 Finch layers, then 2 GOLD layers; c rows of D/16 numbers.
  constexpr int64_t kWidth = 128, kGold = 2, kCompressed = kWidth / 16, kVocabBytes = 2;
  for (const auto& [dtype, row_bytes] : {std::pair{"bf16", kCompressed * 2}, std::pair{"int8", kCompressed + 2}}) {
    SCOPED_TRACE(dtype);
    LocalCluster cluster(kDemoModel, 2, [dtype = dtype](CoordinatorOptions* options) {
      options->membership.cache_dtype = dtype;
      options->membership.partition.split = {0, 4};
      options->membership.partition.split_layers = kDemoLayers;
    });
    cluster.AwaitReady();
    const std::vector<int32_t> prompt = Text(std::string(1000, 'a'));
    constexpr int64_t kAnswer = 5;
    ASSERT_TRUE(cluster.Generate(prompt, kAnswer)->Wait().ok());
    cluster.ExpectNothingHeld();
    const v1::BoundaryBytes bytes = cluster.Info().groups(0).stages(1).received();
    const int64_t tokens = 1000 + kAnswer - 1;
    EXPECT_EQ(static_cast<int64_t>(bytes.compressed()), tokens * row_bytes);
    EXPECT_EQ(static_cast<int64_t>(bytes.ids()), tokens * kVocabBytes);
    EXPECT_EQ(static_cast<int64_t>(bytes.hidden()), (2 * kGold + 1 + kAnswer - 1) * kWidth * 4);
  }
}

// To the byte, whatever the split: between Finch layers, at the border and between GOLD layers, for a long prompt in
// several steps and for one that is shorter than the rows that GOLD layers need.
TEST(LocalClusterTest, BoundariesCarryWhatThePlannerCounts) {
  for (const std::vector<int>& split :
       std::vector<std::vector<int>>{{0, 2}, {0, 4}, {0, 5}, {0, 2, 4}, {0, 4, 5}, {}}) {
    constexpr int kStages = 3;  // of the planner's own split
    const int stages = split.empty() ? kStages : static_cast<int>(split.size());
    LocalCluster cluster(kDemoModel, stages, [&](CoordinatorOptions* options) {
      options->membership.cache_dtype = "bf16";
      options->membership.partition.split = split;
      options->membership.partition.split_layers = kDemoLayers;
      options->membership.partition.max_step_tokens = 256;
    });
    cluster.AwaitReady();
    ModelMemory model;
    model.layers.resize(kDemoLayers);
    model.gold_layers = 2;
    model.width = 128;
    model.vocab_size = 257;
    model.compressed_row_bytes = 16;
    std::vector<ReceivedBytes> expected(stages);
    for (const int64_t prompt : {1000, 3}) {
      constexpr int64_t kAnswer = 5;
      ASSERT_TRUE(cluster.Generate(Text(std::string(prompt, 'a')), kAnswer)->Wait().ok());
      cluster.ExpectNothingHeld();
      const v1::GroupInfo group = cluster.Info().groups(0);
      std::vector<int> first_layers;
      for (const v1::StageInfo& stage : group.stages()) first_layers.push_back(static_cast<int>(stage.first_layer()));
      if (!split.empty()) {
        ASSERT_EQ(first_layers, split);
      }
      EXPECT_NE(group.plan(), "");
      for (int stage = 0; stage < stages; ++stage) {
        const ReceivedBytes bytes = ReceivedForRequest(model, first_layers, stage, prompt, kAnswer);
        expected[stage].hidden += bytes.hidden;
        expected[stage].compressed += bytes.compressed;
        expected[stage].ids += bytes.ids;
        const auto received = [&] {
          const v1::GroupInfo now = cluster.Info().groups(0);
          const v1::BoundaryBytes& measured = now.stages(stage).received();
          return ReceivedBytes{.hidden = static_cast<int64_t>(measured.hidden()),
                               .compressed = static_cast<int64_t>(measured.compressed()),
                               .ids = static_cast<int64_t>(measured.ids())};
        };
        // A stage in the middle may be the last one to say what it has done.
        for (int i = 0; i < 5000 && received() != expected[stage]; ++i) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        EXPECT_EQ(received(), expected[stage])
            << ::testing::PrintToString(first_layers) << ", stage " << stage << ", prompt " << prompt;
      }
    }
  }
}

TEST(LocalClusterTest, AFactIsFoundOver8BitRowsWhateverTheSplit) {
  for (const int stages : {1, 3}) {
    LocalCluster cluster(kDemoModel, stages,
                         [](CoordinatorOptions* options) { options->membership.cache_dtype = "int8"; });
    cluster.AwaitReady();
    const auto request = cluster.Generate(
        Text(absl::StrCat("The number of Gadoza is 40718.\n", kFact, "\nWhat is the number of Gadoza? ")), 5);
    ASSERT_TRUE(request->Wait().ok());
    EXPECT_EQ(request->tokens(), Text("40718"));
    cluster.ExpectNothingHeld();
  }
}

TEST(LocalClusterTest, LostWorkersAtAnyMomentChangeNoAnswer) {
  std::vector<std::vector<int32_t>> undisturbed;
  const auto ask = [](LocalCluster& cluster, int i) {
    return cluster.Generate(Text(absl::StrCat(kFact, i)), 16, [i](Request* request) {
      request->generate->samples = 1 + i % 2;
      if (i % 3 == 0) return;
      request->generate->sampling.temperature = 1;
      request->generate->sampling.seed = 100 + i;
    });
  };
  LocalCluster cluster(kDemoModel, 3);
  cluster.AwaitReady();
  constexpr int kRequests = 4;
  for (int i = 0; i < kRequests; ++i) {
    const auto request = ask(cluster, i);
    ASSERT_TRUE(request->Wait().ok());
    undisturbed.push_back(request->tokens());
    if (i % 2 == 1)
      undisturbed.back().insert(undisturbed.back().end(), request->tokens(1).begin(), request->tokens(1).end());
  }
  std::mt19937 random(1);
  const uint64_t generation = cluster.Info().group_generation();
  for (int round = 0; round < 6; ++round) {
    std::vector<std::shared_ptr<WatchedRequest>> requests;
    for (int i = 0; i < kRequests; ++i) requests.push_back(ask(cluster, i));
    requests[random() % kRequests]->AwaitTokens(random() % 16);
    cluster.workers().Kill(random() % 3);
    for (int i = 0; i < kRequests; ++i) {
      ASSERT_TRUE(requests[i]->Wait().ok()) << requests[i]->Wait();
      std::vector<int32_t> tokens = requests[i]->tokens();
      if (i % 2 == 1) tokens.insert(tokens.end(), requests[i]->tokens(1).begin(), requests[i]->tokens(1).end());
      EXPECT_EQ(tokens, undisturbed[i]) << "round " << round << ", request " << i;
    }
  }
  EXPECT_GE(cluster.Info().group_generation(), generation + 6);
  cluster.ExpectNothingHeld();
}

TEST(LocalClusterTest, MetricsCountAPromptOnceAlsoAfterALoss) {
  LocalCluster cluster(kDemoModel, 3, [](CoordinatorOptions* options) {
    options->membership.stages = 2;
    options->membership.partition.max_step_tokens = 64;
  });
  cluster.AwaitReady();
  cluster.AwaitMetric("workers_spare", 1);
  EXPECT_GT(cluster.Metric("slots_max"), 0);
  constexpr int kPromptTokens = 3000, kTokens = 600;
  const auto request = cluster.Generate(Text(std::string(kPromptTokens, 'a')), kTokens, [](Request* request) {
    request->progress = true;
    request->generate->sampling.banned_tokens = {0};
  });
  request->AwaitProgress(1000);
  cluster.workers().Kill(0);
  cluster.workers().Kill(1);
  cluster.workers().Kill(2);
  ASSERT_TRUE(request->Wait().ok()) << request->Wait();
  EXPECT_GE(request->usage().recoveries, 1);
  cluster.ExpectNothingHeld();
  cluster.AwaitMetric("slots_used", 0);
  EXPECT_EQ(cluster.Metric("prompt_tokens_total"), kPromptTokens);
  EXPECT_EQ(cluster.Metric("generation_tokens_total"), kTokens);
  EXPECT_GE(cluster.Metric("reread_tokens_total"), 1000);
  EXPECT_EQ(cluster.Metric("request_recoveries_total"), request->usage().recoveries);
  EXPECT_EQ(cluster.Metric("request_prompt_tokens"), kPromptTokens);
  EXPECT_EQ(cluster.Metric("request_generation_tokens"), kTokens);
  EXPECT_NEAR(cluster.Metric("request_prefill_time_seconds"), request->usage().prefill_seconds, 1e-9);
  EXPECT_NEAR(cluster.Metric("request_decode_time_seconds"), request->usage().decode_seconds, 1e-9);
  EXPECT_GE(cluster.Metric("step_tokens"), kPromptTokens + kTokens - 1);
  EXPECT_GT(cluster.Metric("step_seconds"), 0);
}

TEST(LocalClusterTest, MetricsSayWhatASequenceHolds) {
  LocalCluster cluster(kDemoModel, 1);
  cluster.AwaitReady();
  uint64_t number = 0;
  const auto request = cluster.Generate(
      Text(kFact), 3500, [](Request* request) { request->generate->sampling.banned_tokens = {0}; }, &number);
  request->AwaitTokens(3);
  cluster.AwaitMetric("slots_used", 1);
  EXPECT_EQ(cluster.Metric("gold_tier_sequences"), 1) << "of one stage with GOLD layers";
  EXPECT_GT(cluster.Metric("cache_tokens_used"), 0);
  // More at first, and from an answer of average length on page by page.
  EXPECT_GE(cluster.Metric("cache_tokens_reserved"), cluster.Metric("cache_tokens_used"));
  cluster.coordinator().Cancel(number, absl::DeadlineExceededError("the deadline has passed"));
  EXPECT_FALSE(request->Wait().ok());
  cluster.AwaitMetric("request_deadline_misses_total", 1);
  EXPECT_EQ(cluster.Metric("request_deadline_refusals_total"), 0);
  cluster.AwaitMetric("slots_used", 0);
  cluster.AwaitMetric("gold_tier_sequences", 0);
}

TEST(LocalClusterTest, ReplicasShareTheWorkAndStandInForEachOther) {
  LocalCluster cluster(kDemoModel, 4, [](CoordinatorOptions* options) {
    options->membership.stages = 2;
    options->membership.replicas = 2;
    options->membership.partition.max_sequences = 4;
  });
  const auto both_ready = [&] {
    const v1::GetClusterInfoResponse info = cluster.Info();
    return info.groups(0).state() == v1::READY && info.groups(1).state() == v1::READY;
  };
  while (!both_ready()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const auto ask_all = [&] {
    std::vector<std::shared_ptr<WatchedRequest>> requests;
    for (int i = 0; i < 8; ++i) requests.push_back(cluster.Generate(Text(absl::StrCat(kFact, i)), 20));
    return requests;
  };
  const auto undisturbed = ask_all();
  for (const auto& request : undisturbed) ASSERT_TRUE(request->Wait().ok());
  EXPECT_GT(cluster.Info().groups(0).steps(), 0U);
  EXPECT_GT(cluster.Info().groups(1).steps(), 0U);
  const auto disturbed = ask_all();
  disturbed[0]->AwaitTokens(3);
  cluster.workers().Kill(0);
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(disturbed[i]->Wait().ok()) << disturbed[i]->Wait();
    EXPECT_EQ(disturbed[i]->tokens(), undisturbed[i]->tokens()) << i;
  }
  cluster.ExpectNothingHeld();
}

TEST(LocalClusterTest, ManyRequestsWithCancelsLeaveNothingBehind) {
  LocalCluster cluster(kDemoModel, 3);
  cluster.AwaitReady();
  std::mt19937 random(2);
  std::vector<std::shared_ptr<WatchedRequest>> requests;
  std::vector<uint64_t> numbers(64);
  for (int i = 0; i < 64; ++i) {
    requests.push_back(cluster.Generate(Text(std::string(1 + random() % 120, 'x')),
                                        1 + static_cast<int64_t>(random() % 16), {}, &numbers[i]));
  }
  for (int i = 0; i < 24; ++i) {
    requests[random() % 64]->AwaitTokens(random() % 4);
    cluster.coordinator().Cancel(numbers[random() % 64], absl::CancelledError("the client left"));
  }
  int finished = 0;
  for (const auto& request : requests) finished += request->Wait().ok() ? 1 : 0;
  EXPECT_GE(finished, 64 - 24);
  EXPECT_LT(finished, 64);
  cluster.ExpectNothingHeld();
}

// However long a Step takes: what counts is that its stage gets on.
TEST(LocalClusterTest, AStepMayTakeLongerThanTheStepTimeout) {
  LocalCluster cluster(kDemoModel, 1, [](CoordinatorOptions* options) {
    options->step_timeout_seconds = 0.2;
    options->membership.heartbeat_interval_seconds = 0.02;
    options->step_target_seconds = 1000;
    options->membership.partition.max_step_tokens = 1 << 15;
    options->membership.partition.max_sequence_tokens = 1 << 15;
    options->membership.partition.cache_tokens = 1 << 17;
  });
  cluster.AwaitReady();
  const auto request = cluster.Generate(Text(std::string(8'000, 'a')), 1);
  EXPECT_TRUE(request->Wait().ok()) << request->Wait();
  EXPECT_EQ(request->usage().recoveries, 0);
}

TEST(LocalClusterTest, ADeadlineThatCannotBeMetIsRefusedWithTheEstimate) {
  LocalCluster cluster(kDemoModel, 1);
  cluster.AwaitReady();
  // Estimates begin when some Steps have been measured.
  ASSERT_TRUE(cluster.Generate(Text("a"), 20)->Wait().ok());
  const auto request =
      cluster.Generate(Text(std::string(4000, 'a')), 1, [](Request* request) { request->deadline_seconds = 1e-4; });
  EXPECT_EQ(request->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(request->Wait().message()),
              HasSubstr("to read 4000 tokens beside other requests; the deadline is in"));
  cluster.AwaitMetric("request_deadline_refusals_total", 1);
  EXPECT_EQ(cluster.Metric("request_deadline_misses_total"), 0);
}

TEST(LocalClusterTest, WithoutWorkersRequestsEndWhenTheTimeIsOut) {
  LocalCluster cluster(kDemoModel, 0, [](CoordinatorOptions* options) {
    options->membership.stages = 1;
    options->recovery_timeout_seconds = 0.2;
  });
  const auto request = cluster.Generate({1}, 1);
  EXPECT_EQ(request->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(request->Wait().message()), HasSubstr("recovery timeout"));
  EXPECT_EQ(cluster.Generate({1}, 1)->Wait().code(), absl::StatusCode::kUnavailable);
}

TEST(LocalClusterTest, ALinkHearsThatItsMessagesHaveBeenHandled) {
  // Whatever becomes of them: this worker speaks before it has registered.
  class CountingLink final : public WorkerLink {
   public:
    void Send(const cluster::v1::ToWorker&) override {}
    void Close() override {}
    void Handled() override { ++handled; }

    std::atomic<int> handled = 0;
  };
  LocalCluster cluster(kDemoModel, 1);
  const auto link = std::make_shared<CountingLink>();
  const uint64_t worker = cluster.coordinator().Connected(link, "elsewhere");
  cluster.Info();
  EXPECT_EQ(link->handled, 0);
  cluster::v1::FromWorker message;
  message.mutable_pong()->set_number(1);
  cluster.coordinator().Received(worker, message);
  cluster.Info();  // which waits for the coordinator's thread
  EXPECT_EQ(link->handled, 1);
  cluster.coordinator().Disconnected(worker);
}

TEST(LocalClusterTest, DrainingLetsRequestsEndAndTakesNoNewOnes) {
  LocalCluster cluster(kDemoModel, 2);
  cluster.AwaitReady();
  const auto running = cluster.Generate(Text(kFact), 40);
  cluster.coordinator().Drain(60);
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_FALSE(cluster.coordinator().ready());
  EXPECT_EQ(cluster.Generate({1}, 1)->Wait().code(), absl::StatusCode::kUnavailable);
}

TEST(LocalClusterTest, DrainingEndsWhatTakesTooLong) {
  LocalCluster cluster(kDemoModel, 1);
  cluster.AwaitReady();
  const auto running =
      cluster.Generate(Text(kFact), 3000, [](Request* request) { request->generate->sampling.banned_tokens = {0}; });
  cluster.coordinator().Drain(0.01);
  EXPECT_EQ(running->Wait().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace goldfinch
