#include "coordinator/scheduler/step_encoding.h"

#include <string>
#include <vector>

#include "coordinator/scheduler/step.h"
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

  cluster::v1::Step Encode(bool reads_ids, bool is_last, bool wide = false) {
    cluster::v1::Step step;
    step.add_close(99);  // of the Step before
    EncodeStep(plan_, {7, wide ? 4 : 2, reads_ids, is_last}, &step);
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
  EXPECT_EQ(step.chunks(0).forks(0).seed(), 12U);
  EXPECT_FALSE(step.chunks(0).forks(0).has_sampling()) << "it is that of the sequence that is forked";
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
  EXPECT_FALSE(step.chunks(0).forks(0).has_seed());
  EXPECT_EQ(step.chunks(1).logit_rows(), 1U);
  EXPECT_EQ(step.chunks(1).targets_size(), 0);
}

TEST_F(StepEncodingTest, ACopyHasOnlyItsSeed) {
  plan_.open.push_back(
      {.sequence = 6, .sampling = &sampling_, .seed = 13, .copy_of = plan_.open[0].sequence, .draw = true});
  for (const bool is_last : {false, true}) {
    const cluster::v1::Step step = Encode(is_last, false);
    ASSERT_EQ(step.open_size(), 2);
    EXPECT_EQ(step.open(0).copy_of(), 0U);
    EXPECT_EQ(step.open(1).copy_of(), step.open(0).sequence());
    EXPECT_FALSE(step.open(1).has_sampling());
    EXPECT_EQ(step.open(1).seed(), is_last ? 13U : 0U);
    EXPECT_EQ(step.open(1).draw(), is_last);
  }
}

TEST_F(StepEncodingTest, IdsOfLargeVocabulariesTakeFourBytes) {
  plan_.ids[0] = 0x12345678;
  EXPECT_EQ(Encode(true, false, true).chunks(0).ids(), std::string("\x78\x56\x34\x12\3\0\0\0", 8));
}

TEST(StepDecodingTest, AStepDoneBecomesPlainDataAndMemoryIsUsedAgain) {
  cluster::v1::StepDone done;
  done.set_id(8);
  cluster::v1::ChunkResult& sampled = *done.add_results();
  sampled.set_sequence(4);
  sampled.set_token(0xffffffff);
  cluster::v1::ChunkResult& scored = *done.add_results();
  scored.set_sequence(6);
  scored.add_logprobs(-1);
  scored.add_logprobs(-2);
  scored.add_top()->add_ids(42);
  scored.mutable_top(0)->add_logprobs(-0.5);
  scored.mutable_top(0)->add_ids(43);  // without its logprob: dropped
  scored.add_top();
  scored.set_logits("abcdefgh");
  StepResult result;
  result.chunks.resize(3);
  result.chunks[0].error = "of the Step before";
  result.chunks[0].logits = "of the Step before";
  result.chunks[0].logprobs = {7};
  result.chunks[0].top.resize(1);
  DecodeStepDone(&done, &result);
  EXPECT_EQ(result.id, 8U);
  ASSERT_EQ(result.chunks.size(), 2U);
  EXPECT_EQ(result.chunks[0].sequence, 4U);
  EXPECT_EQ(result.chunks[0].token, 0xffffffff) << "checked by the scheduler";
  EXPECT_EQ(result.chunks[0].error, "");
  EXPECT_EQ(result.chunks[0].logits, "");
  EXPECT_TRUE(result.chunks[0].logprobs.empty());
  EXPECT_TRUE(result.chunks[0].top.empty());
  EXPECT_EQ(result.chunks[1].sequence, 6U);
  EXPECT_THAT(result.chunks[1].logprobs, ElementsAre(-1, -2));
  ASSERT_EQ(result.chunks[1].top.size(), 2U);
  ASSERT_EQ(result.chunks[1].top[0].size(), 1U);
  EXPECT_EQ(result.chunks[1].top[0][0].id, 42);
  EXPECT_EQ(result.chunks[1].top[0][0].logprob, -0.5);
  EXPECT_TRUE(result.chunks[1].top[1].empty());
  EXPECT_EQ(result.chunks[1].logits, "abcdefgh");
  EXPECT_EQ(done.results(1).logits(), "") << "moved";
}

TEST(StepDecodingTest, AnErrorIsKept) {
  cluster::v1::StepDone done;
  done.add_results()->set_error("logits are not finite");
  StepResult result;
  DecodeStepDone(&done, &result);
  ASSERT_EQ(result.chunks.size(), 1U);
  EXPECT_EQ(result.chunks[0].error, "logits are not finite");
}

}  // namespace
}  // namespace goldfinch
