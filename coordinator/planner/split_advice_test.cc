#include "coordinator/planner/split_advice.h"

#include <memory>
#include <vector>

#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

// Much is read, little is written.
constexpr ExpectedTraffic kReading{.prompt_tokens = 65'536, .output_tokens = 1, .context_tokens = 65'537};

// A group of equal workers that has the split that its options ask for.
SplitQuestion Ask(int stages, PartitionOptions options, const WorkerResources& worker = kMachine) {
  SplitQuestion question;
  question.model = std::make_shared<const cluster::v1::Described>(Released());
  question.memories.push_back(std::make_shared<const ModelMemory>(ReadModelMemory(*question.model)));
  question.workers.assign(stages, worker);
  for (WorkerResources& one : question.workers) one.model = question.memories[0].get();
  question.options = std::move(options);
  const auto partition = PartitionLayers(*question.model, question.workers, question.options);
  EXPECT_TRUE(partition.ok()) << partition.status();
  question.first_layers = partition->first_layers;
  question.cache_tokens = partition->cache_tokens;
  return question;
}

TEST(SplitAdviceTest, TheBestSplitIsNotBetter) {
  const SplitAdvice advice = AdviseOnSplit(Ask(3, ReleasedOptions()));
  EXPECT_EQ(advice.gain, 0);
  EXPECT_THAT(advice.first_layers, ElementsAre(0, 16, 20));
  EXPECT_EQ(AdviseOnSplit(Ask(1, ReleasedOptions())).gain, 0);
}

TEST(SplitAdviceTest, OtherTrafficWantsAnotherSplit) {
  SplitQuestion question = Ask(2, ReleasedOptions());
  ASSERT_THAT(question.first_layers, ElementsAre(0, 19));
  question.options.traffic = kReading;
  const SplitAdvice advice = AdviseOnSplit(question);
  EXPECT_THAT(advice.first_layers, ElementsAre(0, 8));
  // The first stage had all sixteen layers that read, and has eight of them then.
  EXPECT_GT(advice.gain, 0.4);
  EXPECT_LT(advice.gain, 0.6);
  EXPECT_EQ(advice.traffic, kReading);
  SplitQuestion then = question;
  then.first_layers = advice.first_layers;
  EXPECT_EQ(AdviseOnSplit(then).gain, 0) << "and nothing is better than that";
}

// What counts is what the split was asked to minimize.
TEST(SplitAdviceTest, TheAimDecides) {
  SplitQuestion question = Ask(3, ReleasedOptions());
  question.options.aim = SplitAim::kBalanced;
  const SplitAdvice advice = AdviseOnSplit(question);
  EXPECT_THAT(advice.first_layers, ElementsAre(0, 18, 21));
  EXPECT_GT(advice.gain, 0);
  question.options.aim = SplitAim::kBorder;
  EXPECT_EQ(AdviseOnSplit(question).gain, 0);
}

// The stage of the best split that has most of the layers has too little memory left for so many sequences.
TEST(SplitAdviceTest, ASplitWhoseCachesWouldNotHoldTheTrafficIsNotBetter) {
  SplitQuestion question = Ask(2, ReleasedOptions());
  question.options.traffic = kReading;
  ASSERT_GT(AdviseOnSplit(question).gain, 0);
  question.cache_tokens = int64_t{1} << 40;
  question.options.cache_tokens = int64_t{1} << 19;  // eight sequences of this traffic, all the same
  EXPECT_GT(AdviseOnSplit(question).gain, 0);
  question.options.cache_tokens = 0;
  const int64_t held = PartitionLayers(*question.model, question.workers, question.options)->cache_tokens;
  question.options.traffic.sequences = held / question.options.traffic.context_tokens + 1;
  question.options.max_sequences = 1 << 10;
  EXPECT_EQ(AdviseOnSplit(question).gain, 0) << held;
}

TEST(SplitAdviceTest, WithoutAnySplitThatFitsThereIsNothingToSay) {
  SplitQuestion question = Ask(2, ReleasedOptions());
  for (WorkerResources& worker : question.workers) worker.memory_bytes = 1;
  const SplitAdvice advice = AdviseOnSplit(question);
  EXPECT_EQ(advice.gain, 0);
  EXPECT_EQ(advice.first_layers, question.first_layers);
}

}  // namespace
}  // namespace goldfinch
