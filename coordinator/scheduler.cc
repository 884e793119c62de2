#include "coordinator/scheduler.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr int32_t kEndOfText = 0;
// Of logits that one StepDone brings as they are: far below what a stream takes in one message.
constexpr int64_t kRawLogitBytesMax = int64_t{16} << 20;

int64_t PagesOf(int64_t tokens) { return (tokens + kCachePageTokens - 1) / kCachePageTokens; }

}  // namespace

void StepPlan::Clear() {
  close.clear();
  open.clear();
  chunks.clear();
  ids.clear();
  targets.clear();
  forks.clear();
  prefill_tokens = 0;
}

// A sequence of a request: one of its samples or continuations.
struct Scheduler::Member {
  Entry* entry = nullptr;
  int index = 0;
  std::vector<int32_t> tail;  // what follows the prompt: the answer so far, or the continuation
  bool done = false;
  int64_t delivered = 0;  // score: rows of positions before this have been delivered, from the prompt's last on

  // Of its run in a group.
  uint64_t sequence = 0;     // 0: none
  bool opened = false;       // the workers know it
  int64_t scheduled = 0;     // positions that Steps have taken
  bool awaiting = false;     // a token is being drawn
  bool decoding = false;     // has drawn one: a token at a time from here on
  int64_t listed_left = -1;  // as listed for pre-fill; -1: not listed
  int64_t granted = 0;       // tokens of the Step being planned

  int64_t cached = 0;  // positions of its own that it had reached when it ended
  double last_token_time = -1;
};

struct Scheduler::Entry {
  uint64_t number = 0;
  uint64_t arrival = 0;
  Request request;
  std::shared_ptr<RequestSink> sink;
  std::vector<Member> members;
  int live = 0;               // members that are not done
  int64_t prompt_scored = 0;  // score_prompt: rows of positions before this have been delivered
  int64_t prompt_read = 0;    // the most, over all runs
  int losses = 0;             // since it last got further
  bool paused = false;

  // Of its run in a group.
  Group* group = nullptr;
  int64_t shared = 0;  // tokens that one member runs for all

  double submitted = 0;
  double admitted = -1;
  double first_token = -1;
  double last_token = -1;
  std::vector<Finish> finishes;
  RequestUsage usage;

  int64_t prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  QueueKey queue_key() const { return {-request.priority, arrival}; }
  int32_t Token(const Member& member, int64_t position) const {
    return position < prompt() ? request.prompt[position] : member.tail[position - prompt()];
  }
  // Positions to run, as far as they are known.
  int64_t End(const Member& member) const {
    const int64_t known = prompt() + static_cast<int64_t>(member.tail.size());
    return request.score ? known - 1 : known;
  }
  // The most positions that it can come to. The last token of an answer is not run.
  int64_t EndMax(const Member& member) const {
    if (request.score) return End(member);
    return prompt() + std::max<int64_t>(request.generate->max_tokens - 1, 0);
  }
  Member& leader() {
    return *std::find_if(members.begin(), members.end(), [](const Member& member) { return !member.done; });
  }
  // Where the chunk that comes next has to stop at the latest.
  int64_t Limit(const Member& member) const { return member.scheduled < shared ? shared : End(member); }
  // The first position from `begin` on whose logits are wanted for scores.
  int64_t ScoredFrom(const Member& member, int64_t begin) const {
    const int64_t last = prompt() - 1;
    const bool of_prompt = request.score->score_prompt && prompt_scored < last;
    return std::max(begin, of_prompt ? prompt_scored : std::max(last, member.delivered));
  }
  int64_t LogitRows(const Member& member, int64_t begin, int64_t end) const {
    if (request.score) return std::max<int64_t>(end - ScoredFrom(member, begin), 0);
    return end == End(member) && request.generate->max_tokens > 0 ? 1 : 0;
  }
  // What the workers have to know of a member.
  StepPlan::NewSequence Opening(const Member& member) const {
    if (request.score) return {member.sequence};
    const SamplingOptions& sampling = request.generate->sampling;
    return {member.sequence, &sampling, sampling.seed + member.index, member.tail};
  }
  int64_t shared_tokens() const { return live > 1 ? prompt() - 1 : 0; }
  int64_t SharedPages() const { return shared_tokens() / kCachePageTokens; }
  int64_t OwnPages(const Member& member) const { return PagesOf(EndMax(member)) - SharedPages(); }
  int64_t Pages() const {
    int64_t pages = SharedPages();
    for (const Member& member : members) pages += member.done ? 0 : OwnPages(member);
    return pages;
  }
  int64_t LongestMax() const {
    int64_t longest = 0;
    for (const Member& member : members) longest = std::max(longest, EndMax(member));
    return longest;
  }
};

// A chunk under way.
struct Scheduler::Flight {
  uint64_t sequence;
  int64_t begin;
  int64_t end;
  int64_t logit_rows;
};

struct Scheduler::Group {
  GroupCapacity capacity;
  int64_t pages_max = 0;

  int sequences = 0;
  int64_t pages = 0;
  int64_t prefill_left = 0;  // tokens, of the listed
  int decoding = 0;

  std::set<ShortestKey> shortest;
  std::set<OldestKey> oldest;
  std::deque<uint64_t> ready;  // sequences with a token to run; may have ended or been paused since
  std::vector<uint64_t> close;

  uint64_t last_step = 0;
  std::deque<std::pair<uint64_t, std::vector<Flight>>> steps;  // in flight, by id
  std::vector<std::vector<Flight>> spare;                      // to reuse their memory

  bool Fits(const Entry& entry) const {
    return sequences + entry.live <= capacity.max_sequences && pages + entry.Pages() <= pages_max;
  }
  bool EverFits(const Entry& entry) const {
    return entry.live <= capacity.max_sequences && entry.Pages() <= pages_max &&
           entry.LongestMax() <= capacity.max_sequence_tokens;
  }
  // How much is ahead of a new request.
  int64_t load() const { return prefill_left + int64_t{16} * sequences; }
};

Scheduler::Scheduler(int max_queue, int places) : max_queue_(max_queue), places_(places) {}

Scheduler::~Scheduler() = default;

void Scheduler::SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token) {
  vocab_size_ = vocab_size;
  cache_bytes_per_token_ = cache_bytes_per_token;
  transformer_bytes_per_token_ = transformer_bytes_per_token;
}

// ---- Requests ----

void Scheduler::Submit(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now) {
  GF_CHECK(!request.prompt.empty());
  GF_CHECK_NE(request.generate.has_value(), request.score.has_value());
  auto owned = std::make_unique<Entry>();
  Entry& entry = *owned;
  entry.number = number;
  entry.arrival = ++last_arrival_;
  entry.sink = std::move(sink);
  entry.submitted = now;
  entry.usage.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const size_t members =
      request.generate ? request.generate->samples : std::max<size_t>(request.score->continuations.size(), 1);
  entry.members.resize(members);
  for (size_t i = 0; i < members; ++i) {
    entry.members[i].entry = &entry;
    entry.members[i].index = static_cast<int>(i);
    if (request.score && !request.score->continuations.empty()) {
      entry.members[i].tail = std::move(request.score->continuations[i]);
    }
  }
  entry.live = static_cast<int>(members);
  entry.request = std::move(request);
  GF_CHECK(entries_.emplace(number, std::move(owned)).second) << "request " << number;
  waiting_.emplace(entry.queue_key(), &entry);
  // Before a prompt's only token there is nothing to score it by.
  if (entry.request.score && entry.End(entry.members[0]) == 0) return End(entry, absl::OkStatus(), now);
  if (all_groups_up() && !EverFits(entry)) return End(entry, TooLarge(entry), now);
  Admit(now);
  const auto found = entries_.find(number);
  if (found == entries_.end() || found->second->group != nullptr || waiting() <= max_queue_) return;
  End(*found->second,
      absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", max_queue_, " requests wait already (--max-queue)")),
      now);
}

void Scheduler::Cancel(uint64_t number, const absl::Status& status, double now) {
  const auto found = entries_.find(number);
  if (found != entries_.end()) End(*found->second, status, now);
}

void Scheduler::CancelAll(const absl::Status& status, double now) {
  while (!entries_.empty()) End(*entries_.begin()->second, status, now);
}

void Scheduler::CancelWaiting(const absl::Status& status, double now) {
  while (!waiting_.empty()) End(*waiting_.begin()->second, status, now);
}

void Scheduler::Resume(uint64_t number) {
  const auto found = entries_.find(number);
  if (found == entries_.end() || !found->second->paused) return;
  Entry& entry = *found->second;
  entry.paused = false;
  for (Member& member : entry.members) {
    if (member.sequence == 0 || member.awaiting) continue;
    if (member.decoding) {
      entry.group->ready.push_back(member.sequence);
    } else {
      ListPrefill(member);
    }
  }
}

void Scheduler::Pause(Entry& entry) {
  entry.paused = true;
  for (Member& member : entry.members) UnlistPrefill(member);
}

bool Scheduler::EverFits(const Entry& entry) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const auto& group) { return group.second->EverFits(entry); });
}

absl::Status Scheduler::TooLarge(const Entry& entry) const {
  int64_t sequences = 0, tokens = 0, longest = 0;
  for (const auto& [index, group] : groups_) {
    sequences = std::max<int64_t>(sequences, group->capacity.max_sequences);
    tokens = std::max(tokens, group->pages_max * kCachePageTokens);
    longest = std::max(longest, group->capacity.max_sequence_tokens);
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the request may need ", entry.live, " sequences of up to ", entry.LongestMax(), " tokens and ",
      entry.Pages() * kCachePageTokens, " tokens of cache; there are ", sequences,
      " sequences (--max-num-seqs) of up to ", longest, " tokens (--max-model-len) and ", tokens, " tokens of cache"));
}

// Ends the request: the entry is gone when this returns.
void Scheduler::End(Entry& entry, const absl::Status& status, double now) {
  // The shared part once, and of each member what is its own.
  int64_t cached = entry.members.size() > 1 ? std::min(entry.prompt() - 1, entry.prompt_read) : 0;
  for (Member& member : entry.members) {
    if (member.sequence != 0) Release(member);
    cached += member.cached;
  }
  if (entry.group == nullptr) waiting_.erase(entry.queue_key());
  RequestUsage& usage = entry.usage;
  const bool ran = entry.admitted >= 0;
  const double first = entry.first_token >= 0 ? entry.first_token : now;
  usage.queue_seconds = (ran ? entry.admitted : now) - entry.submitted;
  usage.prefill_seconds = ran ? first - entry.admitted : 0;
  usage.decode_seconds = entry.first_token >= 0 ? entry.last_token - entry.first_token : 0;
  usage.cache_bytes = cached * cache_bytes_per_token_;
  usage.transformer_cache_bytes = cached * transformer_bytes_per_token_;
  const std::unique_ptr<Entry> owned = std::move(entries_.find(entry.number)->second);
  entries_.erase(owned->number);
  events_.ended.push_back(
      {owned->request.id, status, std::move(owned->finishes), now - owned->submitted, owned->usage});
  owned->sink->OnDone(status, owned->usage);
}

// ---- Groups ----

void Scheduler::GroupUp(int index, const GroupCapacity& capacity, double now) {
  auto group = std::make_unique<Group>();
  group->capacity = capacity;
  group->pages_max = PagesOf(capacity.cache_tokens);
  GF_CHECK(groups_.emplace(index, std::move(group)).second) << "group " << index;
  Admit(now);
}

void Scheduler::GroupLost(int index, double now) {
  const auto found = groups_.find(index);
  GF_CHECK(found != groups_.end()) << "group " << index;
  for (const auto& [number, entry] : entries_) {
    if (entry->group != found->second.get()) continue;
    entry->group = nullptr;
    entry->shared = 0;
    ++entry->losses;
    ++entry->usage.recoveries;
    ++events_.recoveries;
    for (Member& member : entry->members) {
      if (member.sequence != 0) members_.erase(member.sequence);
      member.sequence = 0;
      member.opened = member.awaiting = member.decoding = false;
      member.listed_left = -1;
      if (!member.done) member.scheduled = 0;
    }
    waiting_.emplace(entry->queue_key(), entry.get());
  }
  groups_.erase(found);
  std::vector<Entry*> hopeless;
  for (const auto& [number, entry] : entries_) {
    if (entry->losses >= kLossesMax) hopeless.push_back(entry.get());
  }
  for (Entry* entry : hopeless) {
    End(*entry,
        absl::InternalError(absl::StrCat("the workers were lost ", kLossesMax, " times without getting any further")),
        now);
  }
}

GroupLoad Scheduler::Load(int index) const {
  const auto found = groups_.find(index);
  if (found == groups_.end()) return {};
  const Group& group = *found->second;
  return {group.sequences, group.capacity.max_sequences, group.pages * kCachePageTokens,
          group.pages_max * kCachePageTokens, static_cast<int>(group.steps.size())};
}

void Scheduler::Admit(double now) {
  while (!waiting_.empty() && has_group()) {
    Entry& entry = *waiting_.begin()->second;
    if (!EverFits(entry)) {  // the groups have become smaller
      if (!all_groups_up()) return;
      End(entry, TooLarge(entry), now);
      continue;
    }
    Group* best = nullptr;
    for (const auto& [index, group] : groups_) {
      if (group->EverFits(entry) && group->Fits(entry) && (best == nullptr || group->load() < best->load())) {
        best = group.get();
      }
    }
    if (best == nullptr) return;
    waiting_.erase(waiting_.begin());
    Start(entry, *best, now);
  }
}

void Scheduler::Start(Entry& entry, Group& group, double now) {
  entry.group = &group;
  if (entry.admitted < 0) entry.admitted = now;
  group.sequences += entry.live;
  group.pages += entry.Pages();
  entry.shared = entry.shared_tokens();
  for (Member& member : entry.members) {
    if (member.done) continue;
    member.sequence = ++last_sequence_;
    members_.emplace(member.sequence, &member);
  }
  if (entry.shared > 0) return Activate(entry.leader(), 0);
  for (Member& member : entry.members) {
    if (!member.done) Activate(member, 0);
  }
}

// The member can run from `position` on.
void Scheduler::Activate(Member& member, int64_t position) {
  member.scheduled = position;
  ListPrefill(member);
}

void Scheduler::ListPrefill(Member& member) {
  const Entry& entry = *member.entry;
  Group& group = *entry.group;
  // Those that wait for their fork are at 0 while the leader runs what they share.
  const bool waits_for_fork = member.scheduled < entry.shared && &member != &member.entry->leader();
  if (entry.paused || waits_for_fork || member.scheduled >= entry.End(member)) return;
  GF_CHECK_EQ(member.listed_left, -1);
  member.listed_left = entry.End(member) - member.scheduled;
  group.prefill_left += member.listed_left;
  group.shortest.emplace(-entry.request.priority, member.listed_left, entry.arrival, member.sequence);
  group.oldest.emplace(-entry.request.priority, entry.arrival, member.sequence);
}

void Scheduler::UnlistPrefill(Member& member) {
  if (member.listed_left < 0) return;
  const Entry& entry = *member.entry;
  Group& group = *entry.group;
  group.prefill_left -= member.listed_left;
  group.shortest.erase({-entry.request.priority, member.listed_left, entry.arrival, member.sequence});
  group.oldest.erase({-entry.request.priority, entry.arrival, member.sequence});
  member.listed_left = -1;
}

// Gives back what a running member holds.
void Scheduler::Release(Member& member) {
  Entry& entry = *member.entry;
  Group& group = *entry.group;
  UnlistPrefill(member);
  const int64_t shared_pages = entry.shared / kCachePageTokens;
  const bool last = std::count_if(entry.members.begin(), entry.members.end(),
                                  [](const Member& other) { return other.sequence != 0; }) == 1;
  group.sequences -= 1;
  group.pages -= PagesOf(entry.EndMax(member)) - shared_pages + (last ? shared_pages : 0);
  if (member.decoding) group.decoding -= 1;
  member.cached = std::max<int64_t>(member.scheduled - (entry.members.size() > 1 ? entry.prompt() - 1 : 0), 0);
  if (member.opened) group.close.push_back(member.sequence);
  members_.erase(member.sequence);
  member.sequence = 0;
  member.decoding = member.awaiting = member.opened = false;
}

// ---- Steps ----

bool Scheduler::NextStep(int index, double now, StepPlan* plan) {
  const auto found = groups_.find(index);
  GF_CHECK(found != groups_.end()) << "group " << index;
  Group& group = *found->second;
  plan->Clear();
  Admit(now);
  // A Step for every stage. While prompts alone are read one more hides the way to here and back; with sequences that
  // decode it would only come before their next token.
  const int limit = group.capacity.stages + (group.decoding > 0 ? 0 : 1);
  if (static_cast<int>(group.steps.size()) >= limit) return false;
  std::vector<Flight> flights;
  if (!group.spare.empty()) {
    flights = std::move(group.spare.back());
    group.spare.pop_back();
  }
  flights.clear();
  group.steps.emplace_back(group.last_step + 1, std::move(flights));
  PlanDecode(group, plan);
  PlanPrefill(group, plan);
  std::swap(plan->close, group.close);
  group.close.clear();
  if (plan->chunks.empty() && plan->close.empty()) {
    group.spare.push_back(std::move(group.steps.back().second));
    group.steps.pop_back();
    return false;
  }
  plan->id = ++group.last_step;
  return true;
}

void Scheduler::PlanDecode(Group& group, StepPlan* plan) {
  const int64_t share = (group.decoding + group.capacity.stages - 1) / group.capacity.stages;
  const int64_t most = std::min({share, group.capacity.max_step_tokens, group.capacity.max_logit_rows});
  while (!group.ready.empty() && static_cast<int64_t>(plan->chunks.size()) < most) {
    const auto found = members_.find(group.ready.front());
    group.ready.pop_front();
    // Resume lists again what was paused.
    if (found == members_.end() || found->second->entry->paused || found->second->awaiting) continue;
    PlanChunk(group, *found->second, 1, plan);
  }
}

void Scheduler::PlanPrefill(Group& group, StepPlan* plan) {
  int64_t budget = group.capacity.max_step_tokens - static_cast<int64_t>(plan->ids.size());
  std::vector<Member*> granted;
  const auto grant = [&](uint64_t sequence, int64_t most) {
    Member& member = *members_.find(sequence)->second;
    const int64_t left = member.entry->Limit(member) - member.scheduled - member.granted;
    const int64_t tokens = std::min(left, most);
    if (tokens > 0 && member.granted == 0) granted.push_back(&member);
    member.granted += tokens;
    budget -= tokens;
    return tokens;
  };
  for (auto first = group.oldest.begin(); first != group.oldest.end() && budget > 0;) {
    const int priority = std::get<0>(*first);
    int64_t half = (budget + 1) / 2;
    constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
    for (auto it = group.shortest.lower_bound({priority, kLeast, 0, 0});
         it != group.shortest.end() && std::get<0>(*it) == priority && half > 0; ++it) {
      half -= grant(std::get<3>(*it), half);
    }
    for (; first != group.oldest.end() && std::get<0>(*first) == priority && budget > 0; ++first) {
      grant(std::get<2>(*first), budget);
    }
    while (first != group.oldest.end() && std::get<0>(*first) == priority) ++first;
  }
  int64_t logit_rows = group.capacity.max_logit_rows,
          raw_logit_rows = std::max<int64_t>(kRawLogitBytesMax / (4 * vocab_size_), 1);
  for (const StepPlan::Chunk& chunk : plan->chunks) logit_rows -= chunk.logit_rows;
  for (Member* member : granted) {
    int64_t tokens = std::exchange(member->granted, 0);
    const Entry& entry = *member->entry;
    const bool raw = entry.request.score && entry.request.score->logits;
    // Fewer tokens, if their logits are too many for this Step.
    const int64_t rows = entry.LogitRows(*member, member->scheduled, member->scheduled + tokens);
    tokens -= std::max<int64_t>(rows - (raw ? std::min(logit_rows, raw_logit_rows) : logit_rows), 0);
    if (tokens <= 0) continue;
    const int64_t taken = entry.LogitRows(*member, member->scheduled, member->scheduled + tokens);
    logit_rows -= taken;
    if (raw) raw_logit_rows -= taken;
    UnlistPrefill(*member);
    PlanChunk(group, *member, tokens, plan);
    plan->prefill_tokens += tokens;
    ListPrefill(*member);
  }
}

void Scheduler::PlanChunk(Group& group, Member& member, int64_t tokens, StepPlan* plan) {
  Entry& entry = *member.entry;
  const int64_t begin = member.scheduled, end = begin + tokens;
  if (!member.opened) {
    plan->open.push_back(entry.Opening(member));
    member.opened = true;
  }
  StepPlan::Chunk chunk;
  chunk.sequence = member.sequence;
  chunk.position = begin;
  chunk.ids_begin = static_cast<int64_t>(plan->ids.size());
  chunk.tokens = tokens;
  for (int64_t position = begin; position < end; ++position) plan->ids.push_back(entry.Token(member, position));
  chunk.logit_rows = entry.LogitRows(member, begin, end);
  if (entry.request.score && chunk.logit_rows > 0) {
    chunk.targets_begin = static_cast<int64_t>(plan->targets.size());
    for (int64_t row = end - chunk.logit_rows; row < end; ++row) plan->targets.push_back(entry.Token(member, row + 1));
    chunk.top_logprobs = entry.request.score->top_logprobs;
    chunk.logits = entry.request.score->logits;
  }
  chunk.sample = entry.request.generate && chunk.logit_rows > 0;
  member.awaiting = chunk.sample;
  member.scheduled = end;
  chunk.forks_begin = static_cast<int64_t>(plan->forks.size());
  if (end == entry.shared) PlanForks(entry, plan);
  chunk.forks = static_cast<int64_t>(plan->forks.size()) - chunk.forks_begin;
  group.steps.back().second.push_back({member.sequence, begin, end, chunk.logit_rows});
  plan->chunks.push_back(chunk);
}

void Scheduler::PlanForks(Entry& entry, StepPlan* plan) {
  Member& leader = entry.leader();
  for (Member& member : entry.members) {
    if (member.done || &member == &leader) continue;
    plan->forks.push_back(entry.Opening(member));
    member.opened = true;
    Activate(member, entry.shared);
  }
}

// ---- Results ----

absl::Status Scheduler::Apply(int index, const cluster::v1::StepDone& done, double now) {
  const auto found = groups_.find(index);
  GF_CHECK(found != groups_.end()) << "group " << index;
  Group& group = *found->second;
  if (group.steps.empty() || group.steps.front().first != done.id()) {
    return absl::InternalError(absl::StrCat("step ", done.id(), " was answered out of order"));
  }
  std::vector<Flight> flights = std::move(group.steps.front().second);
  group.steps.pop_front();
  int result = 0;
  for (const Flight& flight : flights) {
    const cluster::v1::ChunkResult* answer = nullptr;
    if (flight.logit_rows > 0) {
      if (result >= done.results_size() || done.results(result).sequence() != flight.sequence) {
        return absl::InternalError(absl::StrCat("step ", done.id(), ": no result for sequence ", flight.sequence));
      }
      answer = &done.results(result++);
    }
    const auto member = members_.find(flight.sequence);
    if (member == members_.end()) continue;  // ended meanwhile
    GF_RETURN_IF_ERROR(ApplyChunk(flight, *member->second, answer, now));
  }
  if (result != done.results_size()) {
    return absl::InternalError(
        absl::StrCat("step ", done.id(), ": ", done.results_size() - result, " results too many"));
  }
  group.spare.push_back(std::move(flights));
  return absl::OkStatus();
}

absl::Status Scheduler::ApplyChunk(const Flight& flight, Member& member, const cluster::v1::ChunkResult* result,
                                   double now) {
  Entry& entry = *member.entry;
  if (!member.decoding) {
    events_.prompt_tokens += flight.end - flight.begin;
    const int64_t read = std::min(flight.end, entry.prompt());
    if (read > entry.prompt_read) {
      entry.prompt_read = read;
      entry.losses = 0;
      if (entry.request.progress) entry.sink->OnProgress(read);
    }
  }
  if (result != nullptr && !result->error().empty()) {
    End(entry, absl::InternalError(result->error()), now);
    return absl::OkStatus();
  }
  if (entry.request.score) return result == nullptr ? absl::OkStatus() : TakeScores(flight, member, *result, now);
  if (result != nullptr) return TakeToken(member, *result, now);
  // The prompt was all that was wanted.
  if (flight.end == entry.End(member)) FinishMember(member, Finish::kLength, now);
  return absl::OkStatus();
}

absl::Status Scheduler::TakeToken(Member& member, const cluster::v1::ChunkResult& result, double now) {
  Entry& entry = *member.entry;
  const Request::Generate& generate = *entry.request.generate;
  const std::optional<int>& logprobs = generate.sampling.logprobs;
  if (result.token() >= vocab_size_ || result.logprobs_size() != (logprobs ? 1 : 0) || result.top_size() > 1) {
    return absl::InternalError(absl::StrCat("sequence ", member.sequence, ": not the token that was asked for"));
  }
  OutputToken token{static_cast<int32_t>(result.token())};
  if (logprobs) token.logprob = result.logprobs(0);
  if (result.top_size() > 0) {
    const cluster::v1::TopLogprobs& top = result.top(0);
    for (int i = 0; i < std::min(top.ids_size(), top.logprobs_size()); ++i) {
      token.top.push_back({static_cast<int32_t>(top.ids(i)), top.logprobs(i)});
    }
  }
  if (member.last_token_time >= 0) {
    events_.inter_token_seconds.push_back(now - member.last_token_time);
  } else if (entry.first_token < 0) {
    entry.first_token = now;
    events_.first_token_seconds.push_back(now - entry.submitted);
  }
  member.last_token_time = entry.last_token = now;
  ++events_.generation_tokens;
  ++entry.usage.completion_tokens;
  entry.losses = 0;
  member.tail.push_back(token.id);
  member.awaiting = false;
  if (!member.decoding) ++entry.group->decoding;
  member.decoding = true;

  const RequestSink::Verdict verdict = entry.sink->OnToken(member.index, token);
  if (verdict == RequestSink::Verdict::kPause) Pause(entry);
  const bool stops = verdict == RequestSink::Verdict::kStop ||
                     std::find(generate.stop_ids.begin(), generate.stop_ids.end(), token.id) != generate.stop_ids.end();
  if (token.id == kEndOfText) {
    FinishMember(member, Finish::kEndOfText, now);
  } else if (stops) {
    FinishMember(member, Finish::kStop, now);
  } else if (static_cast<int64_t>(member.tail.size()) >= generate.max_tokens) {
    FinishMember(member, Finish::kLength, now);
  } else if (!entry.paused) {
    entry.group->ready.push_back(member.sequence);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::TakeScores(const Flight& flight, Member& member, const cluster::v1::ChunkResult& result,
                                   double now) {
  Entry& entry = *member.entry;
  const Request::Score& score = *entry.request.score;
  const int64_t rows = flight.logit_rows;
  const auto logit_bytes = static_cast<int64_t>(result.logits().size());
  if (result.logprobs_size() != rows || (score.top_logprobs > 0 && result.top_size() != rows) ||
      logit_bytes % (rows * 4) != 0 || (logit_bytes > 0) != score.logits) {
    return absl::InternalError(absl::StrCat("sequence ", member.sequence, ": not the scores that were asked for"));
  }
  const int64_t first_row = flight.end - rows;
  // Rows before this position score tokens of the prompt.
  const int64_t border = std::clamp(entry.prompt() - 1, first_row, flight.end);
  std::vector<OutputToken> tokens;
  for (int64_t row = first_row; row < flight.end; ++row) {
    OutputToken& token = tokens.emplace_back();
    token.id = entry.Token(member, row + 1);
    token.logprob = result.logprobs(static_cast<int>(row - first_row));
    if (score.top_logprobs == 0) continue;
    const cluster::v1::TopLogprobs& top = result.top(static_cast<int>(row - first_row));
    for (int i = 0; i < std::min(top.ids_size(), top.logprobs_size()); ++i) {
      token.top.push_back({static_cast<int32_t>(top.ids(i)), top.logprobs(i)});
    }
  }
  const int64_t row_bytes = logit_bytes / rows;
  const auto deliver = [&](int continuation, int64_t begin, int64_t end) {
    if (begin == end) return;
    const int64_t first = begin + 1 - (continuation < 0 ? 0 : entry.prompt());
    const RequestSink::Verdict verdict =
        entry.sink->OnScores(continuation, first, absl::MakeConstSpan(tokens).subspan(begin - first_row, end - begin),
                             result.logits().substr((begin - first_row) * row_bytes, (end - begin) * row_bytes));
    if (verdict == RequestSink::Verdict::kPause) Pause(entry);
    entry.usage.completion_tokens += continuation < 0 ? 0 : end - begin;
  };
  deliver(-1, first_row, border);
  deliver(member.index, border, flight.end);
  entry.losses = 0;
  entry.prompt_scored = std::max(entry.prompt_scored, border);
  if (flight.end >= entry.prompt()) member.delivered = flight.end;
  if (flight.end == entry.End(member)) FinishMember(member, Finish::kLength, now);
  return absl::OkStatus();
}

// The entry may be gone when this returns.
void Scheduler::FinishMember(Member& member, Finish finish, double now) {
  Entry& entry = *member.entry;
  if (entry.request.generate) {
    entry.finishes.push_back(finish);
    entry.sink->OnSampleDone(member.index, finish);
  }
  Release(member);
  member.done = true;
  if (--entry.live == 0) End(entry, absl::OkStatus(), now);
}

}  // namespace goldfinch
