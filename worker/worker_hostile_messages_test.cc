// Messages that a coordinator must not send, and damaged model files, end the generation and do no other harm.
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::ToWorker;
using ::testing::HasSubstr;

TEST_P(WorkerTest, BadFormsAreRefused) {
  StartAll(1);
  struct Case {
    std::string named;
    std::function<void(cluster::v1::Form&)> spoil;
  };
  const std::vector<Case> cases = {
      {"first_layers.size is 0", [](auto& form) { form.clear_first_layers(); }},
      {"stage is 2", [](auto& form) { form.set_stage(2); }},
      {"first_layers[0] is 1", [](auto& form) { form.set_first_layers(0, 1); }},
      {"first_layers[1] is 0", [](auto& form) { form.set_first_layers(1, 0); }},
      {"first_layers[1] is 4", [](auto& form) { form.set_first_layers(1, 4); }},
      {"first_layers.size is 5",
       [](auto& form) {
         for (const int layer : {3, 3, 3}) form.add_first_layers(layer);
       }},
      {"max_sequences is 0", [](auto& form) { form.set_max_sequences(0); }},
      {"max_step_tokens is 0", [](auto& form) { form.set_max_step_tokens(0); }},
      {"max_step_tokens is 4294967295", [](auto& form) { form.set_max_step_tokens(0xFFFFFFFF); }},
      {"max_logit_rows is 0", [](auto& form) { form.set_max_logit_rows(0); }},
      {"transport_key.size is 0", [](auto& form) { form.clear_transport_key(); }},
      {"cache_tokens is 0", [](auto& form) { form.set_cache_tokens(0); }},
      {"cache_tokens is 18446744073709551615", [](auto& form) { form.set_cache_tokens(~uint64_t{0}); }},
      {"max_sequence_tokens is 0", [](auto& form) { form.set_max_sequence_tokens(0); }},
      {"sampleable.size is 4", [](auto& form) { form.mutable_sampleable()->pop_back(); }},
      {"repeats_freely.size is 6", [](auto& form) { form.mutable_repeats_freely()->push_back(0); }},
      {"sampleable has no id", [](auto& form) { form.set_sampleable(std::string(kVocab / 8, '\0')); }},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(test_case.named);
    ++generation;
    ToWorker message = FormMessage(1, {0, 2});
    test_case.spoil(*message.mutable_form());
    workers[0]->Received(message);
    const FromWorker reply = workers[0].mailbox->Await(FromWorker::kEndGeneration);
    EXPECT_EQ(reply.end_generation().generation(), generation);
    EXPECT_THAT(reply.end_generation().reason(), HasSubstr(test_case.named));
    EXPECT_FALSE(workers[0]->in_group());
  }
  Form({0});
}

TEST_P(WorkerTest, BadConnectsAreRefused) {
  StartAll(1);
  for (const std::vector<std::string>& addresses : {std::vector<std::string>{}, {"", "", ""}, {"", "nowhere"}}) {
    ++generation;
    workers[0]->Received(FormMessage(0, {0, 2}));
    workers[0].mailbox->Await(FromWorker::kJoined);
    ToWorker message;
    message.mutable_connect()->set_generation(generation);
    for (const std::string& address : addresses) message.mutable_connect()->add_addresses(address);
    workers[0]->Received(message);
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().generation(), generation);
  }
  TestWorker early = Start();
  early->Received(FormMessage(0, {0}));
  EXPECT_THAT(early.mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("before the model"));
}

TEST_P(WorkerTest, LinksThatAreNotThereYetAreNotMeasured) {
  StartAll(1);
  ++generation;
  workers[0]->Received(FormMessage(0, {0}));
  workers[0].mailbox->Await(FromWorker::kJoined);
  ToWorker message;
  message.mutable_measure_links()->set_generation(generation);
  workers[0]->Received(message);
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("MeasureLinks before Connect"));
  workers[0]->Received(message);  // of a generation that has ended
  Form({0});
}

TEST_P(WorkerTest, BadStepsEndTheGeneration) {
  StartAll(1);
  struct Case {
    std::vector<std::string> named;
    std::function<void(Step&, cluster::v1::Chunk&)> spoil;
  };
  const auto sampling = [](auto spoil) {
    return [spoil](Step& step, cluster::v1::Chunk&) { spoil(*step.mutable_open(1)->mutable_sampling()); };
  };
  // Each step opens sequences 1, which scores, and 2, which samples, and has a chunk of 4 tokens with 2 logit rows of
  // sequence 1.
  const std::vector<Case> cases = {
      {{"close", "77"}, [](Step& step, auto&) { step.add_close(77); }},
      {{"open", "sequence 1"}, [](Step& step, auto&) { step.add_open()->set_sequence(1); }},
      {{"max_sequences"},
       [](Step& step, auto&) {
         for (int i = 10; i < 20; ++i) step.add_open()->set_sequence(i);
       }},
      {{"chunk", "77"}, [](Step&, auto& chunk) { chunk.set_sequence(77); }},
      {{"two chunks of sequence 1"}, [](Step& step, auto& chunk) { *step.add_chunks() = cluster::v1::Chunk(chunk); }},
      {{"position", "is 1,", "taken 0"}, [](Step&, auto& chunk) { chunk.set_position(1); }},
      {{"tokens", "are 0"}, [](Step&, auto& chunk) { chunk.set_tokens(0); }},
      {{"tokens", "are 101", "limit is 100"}, [](Step&, auto& chunk) { chunk.set_tokens(101); }},
      {{"tokens", "4294967295"}, [](Step&, auto& chunk) { chunk.set_tokens(0xFFFFFFFF); }},
      {{"limit is 96"}, [](Step& step, auto&) { AddChunk(step, 2, 0, RandomTokens(97, kVocab, 1), 0); }},
      {{"logit_rows", "5"}, [](Step&, auto& chunk) { chunk.set_logit_rows(5); }},
      {{"ids", "7 bytes"}, [](Step&, auto& chunk) { chunk.mutable_ids()->pop_back(); }},
      {{"ids", "0 bytes"}, [](Step&, auto& chunk) { chunk.clear_ids(); }},
      {{"token id 40", "of 40"},
       [](Step&, auto& chunk) {
         chunk.set_ids(Ids({1, 2, 40, 3}));
       }},
      {{"token id 65535"}, [](Step&, auto& chunk) { chunk.set_ids(std::string(8, '\xFF')); }},
      {{"targets", "are 1", "are 2"}, [](Step&, auto& chunk) { chunk.mutable_targets()->RemoveLast(); }},
      {{"target 40"}, [](Step&, auto& chunk) { chunk.set_targets(1, 40); }},
      {{"top_logprobs", "21", "20"}, [](Step&, auto& chunk) { chunk.set_top_logprobs(21); }},
      {{"without targets"}, [](Step&, auto& chunk) { chunk.clear_targets(); }},
      {{"sample of sequence 1", "2 targets"}, [](Step&, auto& chunk) { chunk.set_sample(true); }},
      {{"opened without sampling"},
       [](Step&, auto& chunk) {
         chunk.clear_targets();
         chunk.clear_logits();
         chunk.clear_top_logprobs();
         chunk.set_logit_rows(1);
         chunk.set_sample(true);
       }},
      {{"forks", "sequence 2"}, [](Step&, auto& chunk) { chunk.add_forks()->set_sequence(2); }},
      {{"forks", "sequence 9", "does not sample"},
       [](Step&, auto& chunk) {
         chunk.add_forks()->set_sequence(9);
         chunk.mutable_forks(0)->set_seed(1);
       }},
      {{"saves", "77"}, [](Step& step, auto&) { step.add_saves()->set_sequence(77); }},
      {{"saves", "begin of sequence 1 is 5", "taken 4"},
       [](Step& step, auto&) {
         step.add_saves()->set_sequence(1);
         step.mutable_saves(0)->set_begin(5);
       }},
      {{"restore", "sequence 3", "segment 70 is not on the shelf"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->add_restore(70);
       }},
      {{"draw", "sequence 2", "restore"}, [](Step& step, auto&) { step.mutable_open(1)->set_draw(true); }},
      {{"copy_of", "sequence 3 is a copy of 4"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->set_copy_of(4);
       }},
      {{"copy_of", "sequence 3 is a copy of 3"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->set_copy_of(3);
       }},
      {{"copy_of", "sequence 3", "restore"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->set_copy_of(1);
         step.mutable_open(2)->add_restore(70);
       }},
      {{"copy_of", "sequence 3 has a seed", "does not sample"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->set_copy_of(1);
         step.mutable_open(2)->set_seed(1);
       }},
      {{"draw", "sequence 3", "no copy of one with restore"},
       [](Step& step, auto&) {
         step.add_open()->set_sequence(3);
         step.mutable_open(2)->set_copy_of(2);
         step.mutable_open(2)->set_seed(1);
         step.mutable_open(2)->set_draw(true);
       }},
      {{"observed token 40"}, [](Step& step, auto&) { step.mutable_open(1)->add_observed(40); }},
      {{"temperature"}, sampling([](auto& s) { s.set_temperature(std::numeric_limits<double>::quiet_NaN()); })},
      {{"top_p"}, sampling([](auto& s) { s.set_top_p(1.5); })},
      {{"logprobs"}, sampling([](auto& s) { s.set_logprobs(0xFFFFFFFF); })},
      {{"logit_bias[0]"}, sampling([](auto& s) { s.add_logit_bias()->set_id(0xFFFFFFFF); })},
      {{"banned_tokens[0]", "40"}, sampling([](auto& s) { s.add_banned_tokens(40); })},
      {{"banned_tokens has all"}, sampling([](auto& s) {
         for (int id = 0; id < kVocab; ++id) s.add_banned_tokens(id);
       })},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(testing::PrintToString(test_case.named));
    Form({0});
    Step step = OpenStep(1);
    step.add_open()->set_sequence(2);
    SamplingOptions options;
    FillSampling(options, step.mutable_open(1)->mutable_sampling());
    cluster::v1::Chunk* chunk = AddChunk(step, 1, 0, {1, 2, 3, 4}, 2);
    WantLogits(chunk);
    test_case.spoil(step, *chunk);
    SendStep(step);
    const FromWorker reply = workers[0].mailbox->Await(FromWorker::kEndGeneration);
    EXPECT_EQ(reply.end_generation().generation(), generation);
    for (const std::string& name : test_case.named) EXPECT_THAT(reply.end_generation().reason(), HasSubstr(name));
    SendStep(OpenStep(3));  // gets no answer
  }
  Form({0});
  step_id = 4;
  RunStep(OpenStep(1));
  ++step_id;
  SendStep(OpenStep(2));
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("Step.id is 7 after 5"));
}

TEST_P(WorkerTest, AFloodOfMessagesEndsTheGeneration) {
  StartAll(1);
  ++generation;
  workers[0]->Received(FormMessage(0, {0}));
  ToWorker message;
  message.mutable_step()->set_generation(generation + 1);
  for (int i = 0; i < 200000 && workers[0]->in_group(); ++i) workers[0]->Received(message);
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("messages wait"));
  Form({0});
}

TEST_P(WorkerTest, ADamagedFileIsToldWhenItsLayersAreLoaded) {
  const std::vector<TestTensor> tensors = RandomModel({.layers = {"finch_c2", "finch_c2"}});
  path = testing::TempDir() + "/damaged.pth";
  std::string bytes = PthBytes(tensors);
  // The last tensor of the file is the head's.
  const std::string head = EncodeElements(DType::kBf16, tensors.back().values);
  const size_t at = bytes.find(head);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 5] ^= 1;
  ASSERT_TRUE(WriteFile(path, bytes).ok());
  StartAll(2);
  ++generation;
  for (int stage = 0; stage < 2; ++stage) workers[stage]->Received(FormMessage(stage, {0, 1}));
  EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kJoined).joined().generation(), generation);
  EXPECT_THAT(workers[1].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(), HasSubstr("CRC-32"));
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
