// Workers save sequences, the test plays the coordinator that fetches and puts what they have saved, and workers with
// other layers go on from there.
#include "worker/shelf_session.h"

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::FromWorker;
using cluster::v1::Piece;
using cluster::v1::Step;
using cluster::v1::StepDone;
using cluster::v1::ToShelf;
using cluster::v1::ToWorker;
using ::testing::HasSubstr;

// Everything that a shelf says to one message.
std::vector<FromShelf> Ask(Worker& worker, const ToShelf& message) {
  std::vector<FromShelf> answers;
  const auto send = [&](const FromShelf& answer) {
    answers.push_back(answer);
    return true;
  };
  ShelfSession session(worker.shelf(), send, [] { return true; });
  EXPECT_TRUE(session.Handle(message));
  return answers;
}

std::vector<FromShelf> Fetch(Worker& worker, uint64_t segment) {
  ToShelf message;
  message.mutable_fetch()->set_number(5);
  message.mutable_fetch()->set_segment(segment);
  return Ask(worker, message);
}

using Parts = std::map<std::pair<uint32_t, std::string>, std::vector<Piece>>;  // by layer and kind

class ShelfSessionTest : public WorkerTest {
 public:
  void AddSave(Step& step, uint64_t sequence, uint64_t segment, uint64_t begin) {
    cluster::v1::SaveSegment& save = *step.add_saves();
    save.set_sequence(sequence);
    save.set_segment(segment);
    save.set_begin(begin);
  }

  // What all workers have of a segment.
  Parts FetchAll(uint64_t segment) {
    Parts parts;
    for (int i = 0; i < stages; ++i) {
      std::map<std::pair<uint32_t, std::string>, std::vector<Piece>> own;
      const std::vector<FromShelf> answers = Fetch(*workers[i].worker, segment);
      for (size_t at = 0; at + 1 < answers.size(); ++at) {
        const Piece& piece = answers[at].piece();
        own[{piece.part().layer(), piece.part().kind()}].push_back(piece);
      }
      EXPECT_EQ(answers.back().fetch_done().error(), "");
      EXPECT_EQ(answers.back().fetch_done().number(), 5u);
      EXPECT_EQ(answers.back().fetch_done().parts(), own.size());
      for (const auto& [name, pieces] : own) {
        EXPECT_TRUE(pieces.back().has_crc32c());
        const auto [there, added] = parts.emplace(name, pieces);
        if (!added) {
          EXPECT_EQ(there->second.back().crc32c(), pieces.back().crc32c()) << name.second;
        }
      }
    }
    return parts;
  }

  // Puts the parts that each worker takes, and returns how many were taken.
  int PutAll(const Parts& parts, uint64_t segment) {
    int taken = 0;
    for (int i = 0; i < stages; ++i) {
      std::vector<FromShelf> answers;
      ShelfSession session(
          workers[i].worker->shelf(),
          [&](const FromShelf& answer) {
            answers.push_back(answer);
            return true;
          },
          [] { return true; });
      for (const auto& [name, pieces] : parts) {
        answers.clear();
        for (const Piece& piece : pieces) {
          // Smaller ones than came.
          for (size_t at = 0; at < piece.data().size(); at += 1000) {
            ToShelf message;
            Piece& put = *message.mutable_put();
            put = piece;
            put.set_segment(segment);
            put.set_offset(piece.offset() + at);
            put.set_data(piece.data().substr(at, 1000));
            if (at + 1000 < piece.data().size()) put.clear_crc32c();
            EXPECT_TRUE(session.Handle(message));
          }
        }
        EXPECT_EQ(answers.size(), 1u) << "one answer a part";
        if (answers[0].put_done().error().empty()) ++taken;
        if (!answers[0].put_done().error().empty()) {
          EXPECT_THAT(answers[0].put_done().error(), HasSubstr("is no part of this stage"));
        }
      }
    }
    return taken;
  }

  void DropAll(std::vector<uint64_t> segments) {
    ToWorker message;
    for (const uint64_t segment : segments) message.mutable_drop()->add_segments(segment);
    for (int i = 0; i < stages; ++i) workers[i]->Received(message);
  }
};

TEST_P(ShelfSessionTest, SavedOnThreeStagesAndLoadedOnTwo) {
  const std::vector<int32_t> prompt = RandomTokens(70, kVocab, 3);
  const SamplingOptions sampling = SomeSampling(9);
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 6, sampling);

  StartAll(3);
  Form({0, 1, 3});
  Step step = OpenStep(1);
  AddChunk(step, 1, 0, Part(prompt, 0, 65), 0);
  AddSave(step, 1, 100, 0);
  StepDone done = RunStep(step);
  EXPECT_EQ(done.unsaved_size(), 0);
  EXPECT_GT(done.shelf_bytes(), 0u);
  step.Clear();
  AddChunk(step, 1, 65, Part(prompt, 65, 5), 1);
  AddSave(step, 1, 101, 65);
  RunStep(step);
  const Parts first = FetchAll(100), second = FetchAll(101);
  EXPECT_EQ(first.size() + 1, second.size()) << "the logits";
  DropAll({100, 101});
  step.Clear();
  step.add_close(1);
  RunStep(step);
  for (int i = 0; i < stages; ++i) EXPECT_EQ(dones[i].shelf_bytes(), 0u);

  EndGeneration();
  Form({0, 2});
  EXPECT_GT(PutAll(first, 7), 0);
  EXPECT_GT(PutAll(second, 8), 0);
  // The whole prompt is there: the first token is drawn without a chunk.
  step.Clear();
  cluster::v1::NewSequence* opened = step.add_open();
  opened->set_sequence(1);
  FillSampling(sampling, opened->mutable_sampling());
  for (const uint64_t segment : {7, 8}) opened->add_restore(segment);
  opened->set_draw(true);
  done = RunStep(step);
  std::vector<int32_t> tokens;
  while (tokens.size() < expected.size()) {
    ASSERT_EQ(done.results_size(), 1);
    EXPECT_EQ(done.results(0).error(), "");
    EXPECT_EQ(done.results(0).sequence(), 1u);
    tokens.push_back(static_cast<int32_t>(done.results(0).token()));
    step.Clear();
    AddChunk(step, 1, prompt.size() + tokens.size() - 1, {tokens.back()}, 1)->set_sample(true);
    done = RunStep(step);
  }
  EXPECT_EQ(tokens, expected);
  // From the middle of the prompt; the sequence before still runs.
  step.Clear();
  opened = step.add_open();
  opened->set_sequence(2);
  FillSampling(sampling, opened->mutable_sampling());
  opened->add_restore(7);
  AddChunk(step, 2, 65, Part(prompt, 65, 5), 1)->set_sample(true);
  done = RunStep(step);
  ASSERT_EQ(done.results_size(), 1);
  EXPECT_EQ(static_cast<int32_t>(done.results(0).token()), expected[0]);

  // An unfinished snapshot, and one without logits, cannot be used.
  ToWorker drop;
  drop.mutable_drop()->add_snapshots(8);
  workers[1]->Received(drop);
  step.Clear();
  step.add_open()->set_sequence(3);
  for (const uint64_t segment : {7, 8}) step.mutable_open(0)->add_restore(segment);
  SendStep(step);
  EXPECT_THAT(workers[1].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("restore: sequence 3: the segment [65, 70) lacks"));
}

// A shelf that is full says so, and nothing else happens; a new Welcome empties it.
TEST_P(ShelfSessionTest, AFullShelfSavesNoMore) {
  StartAll(1);
  Form({0});
  Step step = OpenStep(1);
  AddChunk(step, 1, 0, RandomTokens(20, kVocab, 1), 1);
  WantLogits(step.mutable_chunks(0));
  for (uint64_t segment = 0; segment < 200; ++segment) AddSave(step, 1, segment, 0);
  StepDone done = RunStep(step);
  EXPECT_EQ(done.results_size(), 1);
  ASSERT_GT(done.unsaved_size(), 0);
  ASSERT_LT(done.unsaved_size(), 200);
  EXPECT_EQ(done.unsaved(0), 200u - done.unsaved_size());
  EXPECT_EQ(Fetch(*workers[0].worker, 0).back().fetch_done().error(), "");
  EXPECT_THAT(Fetch(*workers[0].worker, 199).back().fetch_done().error(), HasSubstr("segment 199 is not on the shelf"));
  EndGeneration();
  EXPECT_EQ(Fetch(*workers[0].worker, 0).back().fetch_done().error(), "") << "segments outlive groups";
  EXPECT_EQ(Welcome(workers[0]).error(), "");
  EXPECT_THAT(Fetch(*workers[0].worker, 0).back().fetch_done().error(), HasSubstr("not on the shelf"));
}

TEST_P(ShelfSessionTest, HostileMessagesAreAnswered) {
  StartAll(1);
  Form({0});
  Step step = OpenStep(1);
  AddChunk(step, 1, 0, RandomTokens(20, kVocab, 1), 0);
  AddSave(step, 1, 4, 0);
  RunStep(step);
  Worker& worker = *workers[0].worker;
  EXPECT_TRUE(Ask(worker, {}).empty());
  const auto put_error = [&](auto spoil) {
    ToShelf message;
    Piece& piece = *message.mutable_put();
    piece = Fetch(worker, 4)[0].piece();
    piece.set_segment(5);
    spoil(piece);
    const std::vector<FromShelf> answers = Ask(worker, message);
    EXPECT_EQ(answers.size(), 1u);
    return answers[0].put_done().error();
  };
  EXPECT_EQ(put_error([](Piece&) {}), "");
  EXPECT_THAT(put_error([](Piece& p) { p.mutable_part()->set_kind("\x1b[2J"); }), HasSubstr(" is unknown"));
  EXPECT_THAT(put_error([](Piece& p) { p.mutable_part()->set_layer(~0u); }), HasSubstr("is no part of this stage"));
  EXPECT_THAT(put_error([](Piece& p) { p.set_dtype("f64"); }), HasSubstr("which is no type"));
  EXPECT_THAT(put_error([](Piece& p) { p.clear_shape(); }), HasSubstr("expected"));
  EXPECT_THAT(put_error([](Piece& p) {
                for (int i = 0; i < 100; ++i) p.add_shape(1);
              }),
              HasSubstr("the limit is 3"));
  EXPECT_THAT(put_error([](Piece& p) { p.set_shape(0, ~uint64_t{0}); }), HasSubstr("9223372036854775807"));
  EXPECT_THAT(put_error([](Piece& p) { p.set_offset(~uint64_t{0}); }), HasSubstr("9223372036854775807"));
  EXPECT_THAT(put_error([](Piece& p) { p.set_end(~uint64_t{0}); }), HasSubstr("limit is"));
  EXPECT_THAT(put_error([](Piece& p) {
                p.set_segment(6);
                p.set_crc32c(p.crc32c() + 1);
              }),
              HasSubstr("crc32c"));
  ToShelf fetch;
  fetch.mutable_fetch()->set_segment(4);
  fetch.mutable_fetch()->add_parts()->set_kind("rows");
  EXPECT_THAT(Ask(worker, fetch).back().fetch_done().error(), HasSubstr("has no rows of layer 0"));
  fetch.mutable_fetch()->mutable_parts(0)->set_layer(1);
  EXPECT_EQ(Ask(worker, fetch).size(), 2u);
  fetch.mutable_fetch()->mutable_parts(0)->set_kind("nothing");
  EXPECT_THAT(Ask(worker, fetch).back().fetch_done().error(), HasSubstr(" is unknown"));
}

INSTANTIATE_TEST_SUITE_P(Transports, ShelfSessionTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
