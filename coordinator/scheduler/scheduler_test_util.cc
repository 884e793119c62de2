#include "coordinator/scheduler/scheduler_test_util.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/cache_page.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

uint64_t Hash(absl::Span<const int32_t> ids, uint64_t seed) {
  uint64_t hash = seed * 0x9E3779B97F4A7C15 + ids.size();
  for (const int32_t id : ids) hash = (hash ^ static_cast<uint64_t>(id)) * 0x100000001B3 + (hash >> 29);
  return hash ^ hash >> 31;
}

}  // namespace

int32_t FakeToken(absl::Span<const int32_t> ids, uint64_t seed) {
  return 1 + static_cast<int32_t>(Hash(ids, seed) % 199);
}

float FakeLogprob(absl::Span<const int32_t> ids, int32_t target) {
  return -static_cast<float>(Hash(ids, target) % 1000) / 100;
}

std::vector<int32_t> FakeAnswer(std::vector<int32_t> prompt, uint64_t seed, int64_t count) {
  std::vector<int32_t> answer;
  for (int64_t i = 0; i < count; ++i) {
    answer.push_back(FakeToken(prompt, seed));
    prompt.push_back(answer.back());
  }
  return answer;
}

std::vector<int32_t> FakePrompt(int64_t count, int32_t first) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = 1 + static_cast<int32_t>((first + i) % 199);
  return ids;
}

std::vector<int32_t> Prompt(int64_t count, const std::vector<int32_t>& more) {
  std::vector<int32_t> ids = FakePrompt(count);
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

// ---- FakeGroup ----

// `forked`: what it is a copy of; null: it is empty.
void FakeGroup::Open(const StepPlan::NewSequence& sequence, const Sequence* forked) {
  EXPECT_TRUE(used_.insert(sequence.sequence).second) << "used before";
  Sequence opened;
  if (forked != nullptr) {
    opened.ids = forked->ids;
    opened.pages = forked->pages;
    // Both go on writing into a page that is not full.
    if (opened.ids.size() % kCachePageTokens != 0) opened.pages.back() = std::make_shared<Page>(&pages_used_);
  }
  if (!sequence.restore.empty()) Restore(sequence.restore, &opened);
  if (sequence.sampling != nullptr) opened.seed = sequence.seed;
  opened.observed = sequence.observed.size();
  EXPECT_TRUE(sequences_.emplace(sequence.sequence, std::move(opened)).second);
  EXPECT_LE(sequences_.size(), static_cast<size_t>(capacity_.max_sequences));
}

void FakeGroup::TakePages(Sequence* sequence) {
  while (static_cast<int64_t>(sequence->pages.size()) < CachePagesFor(static_cast<int64_t>(sequence->ids.size()))) {
    sequence->pages.push_back(std::make_shared<Page>(&pages_used_));
  }
}

void FakeGroup::Restore(absl::Span<const uint64_t> segments, Sequence* sequence) {
  for (const uint64_t number : segments) {
    const auto found = segments_.find(number);
    ASSERT_NE(found, segments_.end()) << "segment " << number;
    const Segment& segment = found->second;
    ASSERT_EQ(segment.begin, static_cast<int64_t>(sequence->ids.size()));
    ASSERT_TRUE(std::equal(sequence->ids.begin(), sequence->ids.end(), segment.ids.begin()));
    sequence->ids = segment.ids;
    SharePages(number, segment.begin / kCachePageTokens, static_cast<int64_t>(segment.ids.size()) / kCachePageTokens,
               sequence);
  }
  EXPECT_TRUE(segments_.at(segments.back()).snapshot) << "segment " << segments.back();
  TakePages(sequence);
}

// Pages [begin, end) are full of the segment's text.
void FakeGroup::SharePages(uint64_t segment, int64_t begin, int64_t end, Sequence* sequence) {
  std::vector<std::weak_ptr<Page>>& restored = restored_[{segment, begin}];
  restored.resize(end - begin);
  for (std::weak_ptr<Page>& known : restored) {
    std::shared_ptr<Page> page = known.lock();
    if (page == nullptr) page = std::make_shared<Page>(&pages_used_);
    known = page;
    sequence->pages.push_back(std::move(page));
  }
}

void FakeGroup::Save(const StepPlan::Save& save, bool logits) {
  const auto found = sequences_.find(save.sequence);
  ASSERT_NE(found, sequences_.end()) << "sequence " << save.sequence;
  ASSERT_LE(save.begin, static_cast<int64_t>(found->second.ids.size()));
  const auto [kept, is_new] = segments_.try_emplace(save.segment, Segment{found->second.ids, save.begin});
  kept->second.logits = logits;
  EXPECT_EQ(kept->second.begin, save.begin) << "segment " << save.segment;
  if (is_new) return;
  EXPECT_FALSE(kept->second.snapshot) << "segment " << save.segment << " is there already";
  EXPECT_EQ(kept->second.ids, found->second.ids);
  kept->second.snapshot = true;
}

void FakeGroup::DropSegment(uint64_t segment) { EXPECT_EQ(segments_.erase(segment), 1U) << segment; }

void FakeGroup::DropSnapshot(uint64_t segment) {
  const auto found = segments_.find(segment);
  ASSERT_NE(found, segments_.end()) << segment;
  found->second.snapshot = false;
}

StepResult FakeGroup::Run(const StepPlan& plan) {
  EXPECT_EQ(plan.id, ++last_step_);
  EXPECT_LE(plan.ids.size(), static_cast<size_t>(capacity_.max_step_tokens));
  StepResult result;
  result.id = plan.id;
  const auto has_chunk = [&](const StepPlan::Save& save) {
    return std::any_of(plan.chunks.begin(), plan.chunks.end(),
                       [&](const StepPlan::Chunk& chunk) { return chunk.sequence == save.sequence; });
  };
  for (const StepPlan::Save& save : plan.saves) {
    if (!has_chunk(save)) Save(save, /*logits=*/false);
  }
  for (const uint64_t sequence : plan.close) EXPECT_EQ(sequences_.erase(sequence), 1U) << sequence;
  std::map<uint64_t, uint64_t> restored;  // the last segment of each sequence's chain, or of what it is a copy of
  for (const StepPlan::NewSequence& sequence : plan.open) {
    if (sequence.copy_of != 0) {
      EXPECT_TRUE(sequence.restore.empty());
      restored[sequence.sequence] = restored.at(sequence.copy_of);
    } else if (!sequence.restore.empty()) {
      restored[sequence.sequence] = sequence.restore.back();
    }
    Open(sequence, sequence.copy_of != 0 ? &sequences_.at(sequence.copy_of) : nullptr);
  }
  for (const StepPlan::NewSequence& sequence : plan.open) {
    if (!sequence.draw) continue;
    EXPECT_TRUE(segments_.at(restored.at(sequence.sequence)).logits);
    StepResult::Chunk& answer = result.chunks.emplace_back();
    answer.sequence = sequence.sequence;
    answer.token = static_cast<uint32_t>(FakeToken(sequences_.at(sequence.sequence).ids, sequence.seed));
  }
  std::set<uint64_t> seen;
  int64_t logit_rows = 0;
  for (const StepPlan::Chunk& chunk : plan.chunks) {
    EXPECT_TRUE(seen.insert(chunk.sequence).second) << "twice in a Step";
    logit_rows += chunk.logit_rows;
    RunChunk(plan, chunk, &result);
  }
  EXPECT_LE(logit_rows, capacity_.max_logit_rows);
  EXPECT_LE(pages_used_, CachePagesFor(capacity_.cache_tokens));
  return result;
}

void FakeGroup::RunChunk(const StepPlan& plan, const StepPlan::Chunk& chunk, StepResult* result) {
  const auto found = sequences_.find(chunk.sequence);
  ASSERT_NE(found, sequences_.end()) << "sequence " << chunk.sequence;
  std::vector<int32_t>& ids = found->second.ids;
  ASSERT_EQ(chunk.position, static_cast<int64_t>(ids.size()));
  ASSERT_GE(chunk.tokens, 1);
  ASSERT_LE(chunk.logit_rows, chunk.tokens);
  tokens_run_ += chunk.tokens;
  const auto begin = plan.ids.begin() + chunk.ids_begin;
  ids.insert(ids.end(), begin, begin + chunk.tokens);
  ASSERT_LE(static_cast<int64_t>(ids.size()), capacity_.max_sequence_tokens);
  TakePages(&found->second);
  for (const StepPlan::Save& save : plan.saves) {
    if (save.sequence == chunk.sequence) Save(save, chunk.logit_rows > 0);
  }
  for (int64_t i = 0; i < chunk.forks; ++i) Open(plan.forks[chunk.forks_begin + i], &found->second);
  if (chunk.logit_rows == 0) return;
  StepResult::Chunk& answer = result->chunks.emplace_back();
  answer.sequence = chunk.sequence;
  if (chunk.sample) {
    ASSERT_EQ(chunk.logit_rows, 1);
    ASSERT_TRUE(found->second.seed.has_value());
    answer.token = static_cast<uint32_t>(FakeToken(ids, *found->second.seed));
    return;
  }
  ASSERT_GE(chunk.targets_begin, 0);
  for (int64_t i = 0; i < chunk.logit_rows; ++i) {
    const size_t row = ids.size() - chunk.logit_rows + i;
    answer.logprobs.push_back(
        FakeLogprob(absl::MakeConstSpan(ids).subspan(0, row + 1), plan.targets[chunk.targets_begin + i]));
  }
}

// ---- FakeKeeper ----

uint64_t FakeKeeper::Find(int replica, absl::Span<const int32_t> ids, int64_t tokens_max, bool draws) const {
  const auto kept = kept_.find(replica);
  if (kept == kept_.end()) return 0;
  uint64_t best = 0;
  size_t longest = 0;
  for (const auto& [number, segment] : kept->second) {
    const size_t size = segment.ids.size();
    if (size <= longest || size > ids.size() || static_cast<int64_t>(size) > tokens_max) continue;
    if (draws && size == ids.size() && !segment.logits) continue;
    if (!std::equal(segment.ids.begin(), segment.ids.end(), ids.begin())) continue;
    best = number;
    longest = size;
  }
  return best;
}

int64_t FakeKeeper::Kept(int replica, const Request&, absl::Span<const int32_t> ids) const {
  const uint64_t number = Find(replica, ids, static_cast<int64_t>(ids.size()), /*draws=*/true);
  return number == 0 ? 0 : static_cast<int64_t>(kept_.at(replica).at(number).ids.size());
}

bool FakeKeeper::Prepare(int replica, uint64_t request_number, const Request&, absl::Span<const int32_t>, double,
                         double) {
  return !brings || !brings(replica, request_number);
}

PrefixKeeper::Beginning FakeKeeper::Peek(int replica, const Request&, absl::Span<const int32_t> ids, int64_t tokens_max,
                                         double) const {
  Beginning beginning;
  for (uint64_t number = Find(replica, ids, tokens_max, /*draws=*/true); number != 0;
       number = kept_.at(replica).at(number).parent) {
    const auto size = static_cast<int64_t>(kept_.at(replica).at(number).ids.size());
    beginning.segments.insert(beginning.segments.begin(), number);
    beginning.ends.insert(beginning.ends.begin(), size);
    beginning.tokens = std::max(beginning.tokens, size);
  }
  return beginning;
}

PrefixKeeper::Beginning FakeKeeper::Begin(int replica, const Request& request, absl::Span<const int32_t> ids,
                                          int64_t tokens_max, double token_seconds, double) {
  Beginning beginning = Peek(replica, request, ids, tokens_max, token_seconds);
  for (const uint64_t number : beginning.segments) ++kept_[replica].at(number).held;
  const auto size = static_cast<int64_t>(ids.size());
  if (beginning.tokens == size) ended_.emplace(ids.begin(), ids.end());
  for (const int64_t position : save_at ? save_at(size) : std::vector<int64_t>{size}) {
    if (position > beginning.tokens) beginning.save_at.push_back(position);
  }
  return beginning;
}

void FakeKeeper::Release(int replica, const Beginning& beginning) {
  for (const uint64_t number : beginning.segments) {
    const auto kept = kept_[replica].find(number);
    if (kept != kept_[replica].end()) --kept->second.held;
  }
}

PrefixKeeper::Saved FakeKeeper::Save(int replica, const Request&, absl::Span<const int32_t> ids, const SavePoint& point,
                                     double) {
  const auto size = static_cast<int64_t>(ids.size());
  if (point.end) ended_.emplace(ids.begin(), ids.end());
  const uint64_t parent = Find(replica, ids, size, /*draws=*/false);
  const int64_t begin = parent == 0 ? 0 : static_cast<int64_t>(kept_[replica].at(parent).ids.size());
  if (begin == size) return {};
  kept_[replica][++last_] = {std::vector<int32_t>(ids.begin(), ids.end()), parent, point.logits};
  return {last_, begin};
}

absl::Status FakeKeeper::Keep(int, const Request&, absl::Span<const int32_t> ids, double) {
  kept_text.assign(ids.begin(), ids.end());
  EXPECT_TRUE(ended_.contains(kept_text)) << "it was not saved at its end";
  return keep_status;
}

void FakeKeeper::Lose(int replica) { kept_.erase(replica); }

uint64_t FakeKeeper::Drop(int replica) {
  std::map<uint64_t, Segment>& kept = kept_[replica];
  for (const auto& [number, segment] : kept) {
    const bool is_parent =
        std::any_of(kept.begin(), kept.end(), [&](const auto& other) { return other.second.parent == number; });
    if (segment.held > 0 || is_parent) continue;
    const uint64_t dropped = number;
    kept.erase(dropped);
    return dropped;
  }
  return 0;
}

int FakeKeeper::held() const {
  int held = 0;
  for (const auto& [replica, kept] : kept_) {
    for (const auto& [number, segment] : kept) held += segment.held;
  }
  return held;
}

// ---- FakeClient ----

RequestSink::Verdict FakeClient::OnToken(int sample, const OutputToken& token) {
  EXPECT_FALSE(status.has_value()) << "after the end";
  EXPECT_FALSE(finishes[sample].has_value()) << "after the sample's end";
  tokens[sample].push_back(token.id);
  return verdict ? verdict(sample, token.id) : Verdict::kContinue;
}

void FakeClient::OnSampleDone(int sample, Finish finish) {
  EXPECT_FALSE(finishes[sample].has_value());
  finishes[sample] = finish;
}

RequestSink::Verdict FakeClient::OnScores(int continuation, int64_t first, absl::Span<const OutputToken> scored,
                                          std::string logits) {
  EXPECT_TRUE(logits.empty());
  std::vector<OutputToken>& all = scores[continuation];
  EXPECT_EQ(first, static_cast<int64_t>(all.size()) + (continuation < 0 ? 1 : 0));
  all.insert(all.end(), scored.begin(), scored.end());
  return verdict ? verdict(continuation, 0) : Verdict::kContinue;
}

void FakeClient::OnDone(const absl::Status& end, const RequestUsage& used) {
  EXPECT_FALSE(status.has_value()) << "ended twice";
  status = end;
  usage = used;
}

// ---- FakeCluster ----

void FakeCluster::Up(int replica, const GroupCapacity& capacity) {
  groups[replica] = std::make_unique<FakeGroup>(capacity);
  scheduler.GenerationReady(replica, capacity, now);
}

void FakeCluster::Lose(int replica) {
  groups.erase(replica);
  plans.erase(replica);
  in_flight.erase(replica);
  if (keeper != nullptr) keeper->Lose(replica);
  scheduler.GenerationEnded(replica, now);
}

void FakeCluster::Keep() {
  keeper = std::make_unique<FakeKeeper>();
  scheduler.SetKeeper(keeper.get());
}

void FakeCluster::DropSegment(int replica) {
  const uint64_t segment = keeper->Drop(replica);
  if (segment != 0) groups.at(replica)->DropSegment(segment);
}

int FakeCluster::Plan(int replica) {
  StepPlan plan;
  while (scheduler.NextStep(replica, now, &plan)) {
    if (planned) planned(replica, plan);
    in_flight[replica].push_back(groups.at(replica)->Run(plan));
    plans[replica].push_back(plan);
  }
  return static_cast<int>(in_flight[replica].size());
}

void FakeCluster::Answer(int replica) {
  ASSERT_FALSE(in_flight[replica].empty());
  const StepWork work = plans[replica].front().work;
  // To close sequences takes next to nothing.
  const double seconds = !seconds_of ? step_seconds : work.rows > 0 ? seconds_of(work) : 2e-5;
  now += seconds;
  StepResult result = std::move(in_flight[replica].front());
  const uint64_t id = result.id;
  in_flight[replica].pop_front();
  plans[replica].pop_front();
  const absl::Status status = scheduler.Apply(replica, &result, now);
  ASSERT_TRUE(status.ok()) << status.ToString();
  if (answered) answered(replica, id);
  if (!seconds_of) return;
  step_times.push_back(seconds);
  scheduler.Measured(replica, work, seconds, now);
}

void FakeCluster::RunAll() {
  // What was parked may stay so for a while.
  const auto idle_max = [&] { return scheduler.waiting() > 0 ? 20 : 2; };
  for (int idle = 0; idle < idle_max();) {
    if (++idle > 2) now += 0.5;
    if (in_round) in_round();
    for (const auto& [replica, group] : groups) {
      if (Plan(replica) == 0) continue;
      Answer(replica);
      idle = 0;
    }
  }
}

void FakeCluster::RunUntil(double time) {
  while (now < time) {
    bool idle = true;
    if (in_round) in_round();
    for (const auto& [replica, group] : groups) {
      if (Plan(replica) == 0) continue;
      Answer(replica);
      idle = false;
    }
    if (idle) now += step_seconds;
  }
}

uint64_t FakeCluster::Generate(const std::vector<int32_t>& prompt, int64_t max_tokens,
                               std::shared_ptr<FakeClient> client, std::function<void(Request*)> edit) {
  Request request;
  request.prompt = prompt;
  request.generate.emplace();
  request.generate->max_tokens = max_tokens;
  if (edit) edit(&request);
  scheduler.Submit(++last_number, std::move(request), std::move(client), now);
  return last_number;
}

uint64_t FakeCluster::Score(const std::vector<int32_t>& prompt, const std::vector<std::vector<int32_t>>& continuations,
                            bool score_prompt, std::shared_ptr<FakeClient> client) {
  Request request;
  request.prompt = prompt;
  request.score.emplace();
  request.score->continuations = continuations;
  request.score->score_prompt = score_prompt;
  scheduler.Submit(++last_number, std::move(request), std::move(client), now);
  return last_number;
}

// ---- Expectations ----

GroupCapacity Roomy(int stages) {
  return {.stages = stages,
          .max_sequences = 64,
          .cache_tokens = 1 << 20,
          .max_sequence_tokens = 1 << 16,
          .max_step_tokens = 16,
          .max_logit_rows = 64};
}

void ExpectScores(const FakeClient& client, int continuation, std::vector<int32_t> before,
                  const std::vector<int32_t>& text) {
  const auto found = client.scores.find(continuation);
  ASSERT_NE(found, client.scores.end()) << continuation;
  ASSERT_EQ(found->second.size(), text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    EXPECT_EQ(found->second[i].id, text[i]);
    EXPECT_EQ(found->second[i].logprob, FakeLogprob(before, text[i]));
    before.push_back(text[i]);
  }
}

void ExpectNothingLeft(FakeCluster& cluster) {
  cluster.RunAll();
  EXPECT_EQ(cluster.scheduler.running(), 0);
  EXPECT_EQ(cluster.scheduler.waiting(), 0);
  if (cluster.keeper != nullptr) {
    EXPECT_EQ(cluster.keeper->held(), 0);
  }
  for (const auto& [replica, group] : cluster.groups) {
    EXPECT_EQ(group->sequences(), 0U);
    const GroupLoad load = cluster.scheduler.Load(replica);
    EXPECT_EQ(load.sequences, 0);
    EXPECT_EQ(load.cache_tokens_reserved, 0);
    EXPECT_EQ(load.cache_tokens_used, 0);
    EXPECT_EQ(group->pages_used(), 0);
    EXPECT_EQ(load.steps_in_flight, 0);
  }
}

}  // namespace goldfinch
