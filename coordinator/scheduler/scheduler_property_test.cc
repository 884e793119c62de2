// Random histories of several clients: nobody starves, nobody gets more than a fair share for long, memory is never
// exceeded, and every answer is the one that its request would have got alone.
#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Verdict = RequestSink::Verdict;

struct Wanted {
  std::vector<int32_t> prompt, continuation;
  int64_t tokens = 0;
  uint64_t number = 0;
  int client = 0;
  bool cancelled = false;
  bool pauses = false;
  std::shared_ptr<FakeClient> sink;

  // What it has got so far.
  size_t got() const {
    size_t count = sink->status ? 1 : 0;
    for (const auto& sample : sink->tokens) count += sample.size();
    for (const auto& [index, scores] : sink->scores) count += scores.size();
    return count + sink->progress.size();
  }
};

// One random history. If it is `lengthy`, requests may take far more than they do, and what they take does not fit the
// caches together.
class History {
 public:
  explicit History(uint32_t seed, bool lengthy = false, bool overcommit = true)
      : random_(seed),
        seed_(seed),
        lengthy_(lengthy),
        clients_(2 + Below(4)),
        cluster_(QueueLimits{1000}, 2, overcommit) {
    cluster_.step_seconds = 0.05;
    for (int i = 0; i < clients_; ++i) {
      ClientLimits limits;
      if (Below(4) == 0) limits.max_running = 1 + Below(3);
      names_.push_back(std::make_shared<Client>(Client{std::string(1, static_cast<char>('a' + i)), limits}));
    }
    NewGroup(0);
    NewGroup(1);
  }

  // Steps take the time of what they hold, have a target, and attend so slowly that many tokens take longer than a Step
  // should.
  void TimeSteps() {
    const bool every_row = Below(3) == 0;
    cluster_.scheduler.SetModel(200, 1, 1, {.every_row = every_row, .gold_rows_before = 4});
    const double attend = 1e-5 * (1 << Below(every_row ? 3 : 6));
    cluster_.seconds_of = [attend](const StepWork& work) { return 2e-3 + 1e-4 * work.rows + attend * work.attended; };
    step_target_seconds_ = 0.02;
    for (int replica = 0; replica < 2; ++replica) {
      cluster_.Lose(replica);
      NewGroup(replica);
    }
  }

  // Texts are saved at random positions, dropped at random, and sometimes have to be brought first.
  void KeepTexts() {
    cluster_.Keep();
    cluster_.keeper->brings = [this](int, uint64_t number) {
      if (Below(3) > 0) return false;
      coming_.push_back(number);
      return true;
    };
    cluster_.keeper->save_at = [this](int64_t tokens) {
      std::vector<int64_t> positions;
      for (int64_t position = 1 + Below(60); position <= tokens + 20; position += 1 + Below(60)) {
        positions.push_back(position);
      }
      return positions;
    };
  }

  void Run() {
    for (int step = 0; step < 1500; ++step) {
      if (Below(lengthy_ ? 40 : 12) == 0) Submit();
      if (Below(200) == 0 && !all_.empty()) {
        Wanted& wanted = all_[Below(static_cast<int>(all_.size()))];
        wanted.cancelled = true;
        cluster_.scheduler.Cancel(wanted.number, absl::CancelledError(""), cluster_.now);
      }
      if (Below(400) == 0) {
        const int group = Below(2);
        cluster_.Lose(group);
        NewGroup(group);
      }
      if (cluster_.keeper != nullptr && Below(6) == 0) cluster_.DropSegment(Below(2));
      Step();
    }
    for (int step = 0; step < 200'000 && cluster_.scheduler.running() + cluster_.scheduler.waiting() > 0; ++step)
      Step();
    CheckAnswers();
    ExpectNothingLeft(cluster_);
  }

  int64_t parkings() const { return parkings_; }
  int64_t cached_tokens() const { return cached_tokens_; }
  double longest_wait() const { return longest_wait_; }

 private:
  int Below(int limit) { return static_cast<int>(random_() % limit); }

  void NewGroup(int replica) {
    GroupCapacity capacity = Roomy(1 + Below(3));
    capacity.max_sequences = 3 + Below(4);
    capacity.cache_tokens = kCachePageTokens * ((lengthy_ ? 48 : 22) + Below(20));
    capacity.max_step_tokens = 16 + Below(48);
    capacity.step_target_seconds = step_target_seconds_;
    capacity.row_seconds = 1e-4;
    cluster_.Up(replica, capacity);
  }

  void Submit() {
    Wanted wanted;
    wanted.client = Below(clients_);
    // Long enough for some pages to be shared.
    const bool shares = lengthy_ && cluster_.keeper != nullptr;
    wanted.prompt = FakePrompt(1 + Below(shares ? 600 : 120), Below(cluster_.keeper != nullptr ? 3 : 100));
    const auto edit = [&](Request* request) {
      request->client = names_[wanted.client];
      request->progress = true;
    };
    if (Below(5) == 0) {
      wanted.continuation = FakePrompt(1 + Below(60));
      wanted.sink = std::make_shared<FakeClient>();
      Request request;
      request.prompt = wanted.prompt;
      request.score.emplace();
      request.score->continuations = {wanted.continuation, {7}};
      request.score->score_prompt = Below(2) == 0;
      edit(&request);
      wanted.number = ++cluster_.last_number;
      cluster_.scheduler.Submit(wanted.number, std::move(request), wanted.sink, cluster_.now);
    } else {
      wanted.tokens = 1 + Below(Below(3) == 0 ? 300 : 30);
      wanted.sink = std::make_shared<FakeClient>(1 + Below(3));
      int64_t max_tokens = wanted.tokens;
      if (lengthy_) {
        max_tokens = 1 + Below(2900);
        wanted.tokens = std::min<int64_t>(max_tokens, 1 + Below(Below(4) == 0 ? 2900 : 400));
      }
      // Some clients do not keep up now and then.
      const bool pauses = Below(3) == 0;
      const auto pause_at = static_cast<size_t>(1 + Below(20));
      if (pauses || lengthy_) {
        wanted.pauses = pauses;
        const auto stop_at = static_cast<size_t>(wanted.tokens);
        wanted.sink->verdict = [sink = wanted.sink.get(), pauses, pause_at, stop_at](int sample, int32_t) {
          const size_t tokens = sink->tokens[sample].size();
          if (tokens >= stop_at) return Verdict::kStop;
          return pauses && tokens % 20 == pause_at ? Verdict::kPause : Verdict::kContinue;
        };
      }
      wanted.number = cluster_.Generate(wanted.prompt, max_tokens, wanted.sink, [&](Request* request) {
        edit(request);
        request->generate->samples = static_cast<int>(wanted.sink->tokens.size());
        request->generate->sampling.seed = seed_;
        if (cluster_.keeper == nullptr || request->generate->samples > 1 || Below(2) == 0) return;
        request->keep_as = {"a text"};
        if (Below(4) == 0) request->generate->max_tokens = wanted.tokens = 0;
      });
    }
    all_.push_back(wanted);
  }

  void Step() {
    cluster_.RunUntil(cluster_.now + cluster_.step_seconds);
    for (int replica = 0; replica < 2; ++replica) {
      const GroupLoad load = cluster_.scheduler.Load(replica);
      ASSERT_LE(load.sequences, load.sequences_max);
      ASSERT_LE(load.cache_tokens_reserved, load.cache_tokens_max);
      ASSERT_LE(load.cache_tokens_used, load.cache_tokens_reserved);
    }
    const SchedulerEvents events = cluster_.scheduler.TakeEvents();
    parkings_ += events.parkings;
    cached_tokens_ += events.cached_tokens;
    while (!coming_.empty() && Below(2) == 0) {
      const uint64_t number = coming_.back();
      coming_.pop_back();
      cluster_.scheduler.Prepared(number, cluster_.now);
    }
    // Whatever is paused is resumed after a while; the scheduler ignores it for the others.
    for (Wanted& wanted : all_) {
      if (wanted.sink->status || Below(100) > 0) continue;
      cluster_.scheduler.Resume(wanted.number);
    }
    Watch();
  }

  // How long a client has gone without anything, while it has a request whose sink does not pause.
  void Watch() {
    std::vector<bool> wants(clients_);
    std::vector<size_t> got(clients_);
    for (const Wanted& wanted : all_) {
      got[wanted.client] += wanted.got();
      const bool limited = names_[wanted.client]->limits.max_running > 0;  // its own paused requests may keep it out
      if (!wanted.sink->status && !wanted.pauses && !limited) wants[wanted.client] = true;
    }
    for (int i = 0; i < clients_; ++i) {
      Wait& wait = waits_[i];
      if (!wants[i] || got[i] != wait.got) wait = {got[i], cluster_.now};
      longest_wait_ = std::max(longest_wait_, cluster_.now - wait.since);
    }
  }

  void CheckAnswers() {
    for (const Wanted& wanted : all_) {
      ASSERT_TRUE(wanted.sink->status.has_value());
      if (wanted.cancelled || absl::IsInternal(*wanted.sink->status)) continue;  // lost too often in a row
      ASSERT_TRUE(wanted.sink->status->ok()) << *wanted.sink->status;
      if (!wanted.continuation.empty()) {
        ExpectScores(*wanted.sink, 0, wanted.prompt, wanted.continuation);
        continue;
      }
      for (size_t i = 0; i < wanted.sink->tokens.size(); ++i) {
        EXPECT_EQ(wanted.sink->tokens[i], FakeAnswer(wanted.prompt, seed_ + i, wanted.tokens));
      }
    }
  }

  struct Wait {
    size_t got = 0;
    double since = 0;
  };

  std::mt19937 random_;
  const uint32_t seed_;
  const bool lengthy_;
  const int clients_;
  FakeCluster cluster_;
  std::vector<std::shared_ptr<const Client>> names_;
  std::vector<Wanted> all_;
  std::vector<uint64_t> coming_;  // requests for which something is brought
  std::map<int, Wait> waits_;
  double step_target_seconds_ = 0;
  int64_t parkings_ = 0, cached_tokens_ = 0;
  double longest_wait_ = 0;
};

TEST(SchedulerPropertyTest, NobodyStarvesAndEveryAnswerIsExact) {
  int64_t parkings = 0;
  double longest = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    History history(seed);
    history.Run();
    if (testing::Test::HasFatalFailure()) return;
    parkings += history.parkings();
    longest = std::max(longest, history.longest_wait());
    EXPECT_LE(history.longest_wait(), 4 * Scheduler::kTurnSeconds) << "a turn for each of at most four others";
  }
  RecordProperty("longest_wait_seconds", std::to_string(longest));
  EXPECT_GT(parkings, 500);
}

TEST(SchedulerPropertyTest, MemoryThatWasNotReservedCostsNoTokenAndEverythingEnds) {
  for (const bool overcommit : {false, true}) {
    int64_t parkings = 0;
    double longest = 0;
    for (uint32_t seed = 100; seed < 115; ++seed) {
      SCOPED_TRACE(seed);
      History history(seed, /*lengthy=*/true, overcommit);
      history.Run();
      if (testing::Test::HasFatalFailure()) return;
      parkings += history.parkings();
      longest = std::max(longest, history.longest_wait());
    }
    const std::string key = overcommit ? "with_overcommit_" : "without_overcommit_";
    RecordProperty(key + "parkings", std::to_string(parkings));
    RecordProperty(key + "longest_wait_seconds", std::to_string(longest));
    EXPECT_LE(longest, 10 * Scheduler::kTurnSeconds) << "two turns for each of at most five";
    EXPECT_GT(parkings, 100);
  }
}

TEST(SchedulerPropertyTest, NobodyStarvesWhereTokensTakeLongerThanAStepShould) {
  double longest = 0;
  for (uint32_t seed = 200; seed < 220; ++seed) {
    SCOPED_TRACE(seed);
    History history(seed);
    history.TimeSteps();
    history.Run();
    if (testing::Test::HasFatalFailure()) return;
    longest = std::max(longest, history.longest_wait());
  }
  RecordProperty("longest_wait_seconds", std::to_string(longest));
  EXPECT_LE(longest, 6 * Scheduler::kTurnSeconds);
}

TEST(SchedulerPropertyTest, EveryAnswerIsExactWhateverIsKeptOfTexts) {
  int64_t parkings = 0, cached_tokens = 0;
  for (uint32_t seed = 300; seed < 350; ++seed) {
    SCOPED_TRACE(seed);
    History history(seed, /*lengthy=*/seed % 3 == 0);
    history.KeepTexts();
    history.Run();
    if (testing::Test::HasFatalFailure()) return;
    cached_tokens += history.cached_tokens();
    parkings += history.parkings();
    EXPECT_LE(history.longest_wait(), 10 * Scheduler::kTurnSeconds);
  }
  EXPECT_GT(parkings, 500);
  EXPECT_GT(cached_tokens, 50'000);
}

// Clients that want more than they can get, whatever their requests are: each gets its part of the slots' time.
TEST(SchedulerPropertyTest, SharesAreEqualInTheLongRun) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    FakeCluster cluster(/*max_queue=*/10'000);
    cluster.step_seconds = 0.05;
    GroupCapacity capacity = Roomy(1 + below(2));
    capacity.max_sequences = 2 + below(12);
    capacity.max_step_tokens = 256;
    cluster.Up(0, capacity);
    const int clients = 2 + below(3);
    std::vector<std::vector<std::shared_ptr<FakeClient>>> sinks(clients);
    for (int client = 0; client < clients; ++client) {
      const auto name = std::make_shared<Client>(Client{std::string(1, static_cast<char>('a' + client)), {}});
      const int samples = 1 + below(3), tokens = 50 + below(3000);
      for (int i = 0; i < 30'000 / (samples * tokens) * 16 + 16; ++i) {
        cluster.Generate(FakePrompt(4, i), tokens, sinks[client].emplace_back(std::make_shared<FakeClient>(samples)),
                         [&](Request* request) {
                           request->client = name;
                           request->generate->samples = std::min(samples, capacity.max_sequences);
                         });
      }
      cluster.RunUntil(cluster.now + below(3));  // they come one after another
    }
    const auto count = [&](int client) {
      size_t tokens = 0;
      for (const auto& sink : sinks[client]) {
        for (const auto& sample : sink->tokens) tokens += sample.size();
      }
      return tokens;
    };
    std::vector<size_t> before(clients);
    for (int client = 0; client < clients; ++client) before[client] = count(client);
    cluster.RunUntil(cluster.now + 120);
    size_t all = 0;
    for (int client = 0; client < clients; ++client) all += count(client) - before[client];
    for (int client = 0; client < clients; ++client) {
      const double share = static_cast<double>(count(client) - before[client]) / static_cast<double>(all);
      // The slot that is kept for short requests is a large part of few. It is lent to those of one sequence.
      const bool few = capacity.max_sequences >= 4 && capacity.max_sequences < 8;
      EXPECT_NEAR(share * clients, 1, few ? 0.75 : 0.25)
          << "client " << client << " of " << clients << ", " << capacity.max_sequences << " slots";
    }
    cluster.scheduler.CancelAll(absl::CancelledError(""), cluster.now);
    ExpectNothingLeft(cluster);
  }
}

}  // namespace
}  // namespace goldfinch
