#include "coordinator/step_encoding.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

// Closes 3, opens 4, reads two tokens of it and forks it to 5; scores one of 6.
class StepEncodingTest : public ::testing::Test {
 protected:
  StepEncodingTest() {
    sampling_.top_k = 9;
    sampling_.logit_bias = {{2, -1.5}};
    sampling_.banned_tokens = {0};
    sampling_.seed = 1;
    plan_.id = 8;
    plan_.close = {3};
    plan_.open = {{4, &sampling_, 11, observed_}};
    plan_.ids = {258, 3, 65535};
    plan_.targets = {42};
    plan_.forks = {{5, &sampling_, 12, {}}};
    StepPlan::Chunk reads;
    reads.sequence = 4;
    reads.tokens = 2;
    reads.forks = 1;
    StepPlan::Chunk scores;
    scores.sequence = 6;
    scores.position = 70;
    scores.ids_begin = 2;
    scores.tokens = 1;
    scores.logit_rows = 1;
    scores.targets_begin = 0;
    scores.top_logprobs = 5;
    scores.forks_begin = 1;
    plan_.chunks = {reads, scores};
  }

  cluster::v1::Step Encode(bool looks_at_ids, bool is_last, bool wide = false) {
    cluster::v1::Step step;
    step.add_close(99);  // of the Step before
    EncodeStep(plan_, {7, wide ? 4 : 2, looks_at_ids, is_last}, &step);
    return step;
  }

  const std::vector<int32_t> observed_ = {1, 2, 3};
  SamplingOptions sampling_;
  StepPlan plan_;
};

TEST_F(StepEncodingTest, TheLastStageIsToldAll) {
  const cluster::v1::Step step = Encode(true, true);
  EXPECT_EQ(step.generation(), 7U);
  EXPECT_EQ(step.id(), 8U);
  EXPECT_THAT(step.close(), ElementsAre(3));
  ASSERT_EQ(step.open_size(), 1);
  EXPECT_EQ(step.open(0).sampling().seed(), 11U);
  EXPECT_EQ(step.open(0).sampling().top_k(), 9U);
  EXPECT_EQ(step.open(0).sampling().logit_bias(0).bias(), -1.5);
  EXPECT_FALSE(step.open(0).sampling().has_logprobs());
  EXPECT_THAT(step.open(0).observed(), ElementsAre(1, 2, 3));
  ASSERT_EQ(step.chunks_size(), 2);
  EXPECT_EQ(step.chunks(0).ids(), std::string("\2\1\3\0", 4));
  ASSERT_EQ(step.chunks(0).forks_size(), 1);
  EXPECT_EQ(step.chunks(0).forks(0).sampling().seed(), 12U);
  EXPECT_EQ(step.chunks(0).targets_size(), 0);
  EXPECT_EQ(step.chunks(1).ids(), "\xff\xff");
  EXPECT_EQ(step.chunks(1).position(), 70U);
  EXPECT_THAT(step.chunks(1).targets(), ElementsAre(42));
  EXPECT_EQ(step.chunks(1).top_logprobs(), 5U);
}

TEST_F(StepEncodingTest, OtherStagesAreToldWhatTheyNeed) {
  const cluster::v1::Step step = Encode(false, false);
  EXPECT_FALSE(step.open(0).has_sampling());
  EXPECT_EQ(step.open(0).observed_size(), 0);
  EXPECT_EQ(step.chunks(0).ids(), "");
  EXPECT_EQ(step.chunks(0).tokens(), 2U);
  EXPECT_EQ(step.chunks(0).forks(0).sequence(), 5U);
  EXPECT_EQ(step.chunks(1).logit_rows(), 1U);
  EXPECT_EQ(step.chunks(1).targets_size(), 0);
}

TEST_F(StepEncodingTest, IdsOfLargeVocabulariesTakeFourBytes) {
  plan_.ids[0] = 0x12345678;
  EXPECT_EQ(Encode(true, false, true).chunks(0).ids(), std::string("\x78\x56\x34\x12\3\0\0\0", 8));
}

}  // namespace
}  // namespace goldfinch
