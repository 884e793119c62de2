// Membership: what links between workers can do, and groups that end so that the next one has another split.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/stage_extent.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_state.h"

namespace goldfinch {

namespace {

// Links are measured when the group has been idle for a moment, or has served for a while: streams that have just been
// restored do not wait for it.
constexpr double kMeasureIdleSeconds = 0.25;
constexpr double kMeasureBusySeconds = 10;

constexpr int kReplanDoublings = 6;
// A group whose split has been good for so many times replan_after may change it as soon as one that never has.
constexpr double kSteadyReplans = 20;

}  // namespace

// ---- Links ----

const Membership::Link* Membership::FindLink(uint64_t from, uint64_t to) const {
  const auto found = links_.find({from, to});
  return found == links_.end() ? nullptr : &found->second;
}

// The speeds that were given, or else those that were measured. A link that was not is as fast as the other way, or as
// the median of the others, or as its transport is assumed to be.
LinkSpeeds Membership::LinksAmong(const std::vector<uint64_t>& members) const {
  LinkSpeeds links = options_.partition.links;
  if (links.bytes_per_second > 0) return links;
  links.bytes_per_second = AssumedLinkSpeed(workers_.at(members[0])->registration.transport());
  const size_t count = members.size();
  std::vector<double> table(count * count), known;
  for (size_t from = 0; from < count; ++from) {
    for (size_t to = 0; to < count; ++to) {
      const Link* const link = FindLink(members[from], members[to]);
      if (link == nullptr || link->bytes_per_second == 0) continue;
      table[from * count + to] = link->bytes_per_second;
      known.push_back(link->bytes_per_second);
    }
  }
  if (known.empty()) return links;
  const auto middle = known.begin() + static_cast<int64_t>(known.size() / 2);
  std::nth_element(known.begin(), middle, known.end());
  links.bytes_per_second = *middle;
  for (size_t from = 0; from < count; ++from) {
    for (size_t to = 0; to < count; ++to) {
      double& speed = table[from * count + to];
      if (speed == 0) speed = table[to * count + from];
      if (speed == 0) speed = links.bytes_per_second;
    }
  }
  links.table = std::move(table);
  return links;
}

// Pairs of stages between which rows go. There are none before the layers have been dealt out.
std::vector<std::pair<int, int>> Membership::LinksUsed(const Replica& replica) const {
  if (model_ == nullptr || replica.partition.first_layers.size() != replica.stages.size()) return {};
  const int layers = model_->layers_size(), finch_layers = layers - static_cast<int>(model_->gold_layers());
  const int stages = static_cast<int>(replica.stages.size());
  std::vector<std::pair<int, int>> links;
  for (int from = 0; from < stages; ++from) {
    const StageExtent extent = StageExtentAt(replica.partition.first_layers, from, layers, finch_layers);
    const int last = extent.sends_compressed() ? stages - 1 : std::min(from + 1, stages - 1);
    for (int to = from + 1; to <= last; ++to) links.emplace_back(from, to);
  }
  return links;
}

bool Membership::HasUnmeasuredLinks(const Replica& replica) const {
  const std::vector<std::pair<int, int>> used = LinksUsed(replica);
  return std::any_of(used.begin(), used.end(), [&](const auto& link) {
    return FindLink(replica.stages[link.first].worker, replica.stages[link.second].worker) == nullptr;
  });
}

std::vector<Membership::LinkView> Membership::Links(int index) const {
  const Replica& replica = *replicas_[index];
  std::vector<LinkView> views;
  for (const auto& [from, to] : LinksUsed(replica)) {
    const Link* const link = FindLink(replica.stages[from].worker, replica.stages[to].worker);
    if (link != nullptr) views.push_back({from, to, link->bytes_per_second, link->round_trip_seconds});
  }
  return views;
}

void Membership::MeasureLinks(Replica& replica, bool idle, double now) {
  if (!replica.wants_links || replica.drains_since >= 0) return;
  if (now - replica.since < (idle ? kMeasureIdleSeconds : kMeasureBusySeconds)) return;
  replica.wants_links = false;
  for (Stage& stage : replica.stages) {
    stage.measures_links = true;
    cluster::v1::ToWorker message;
    message.mutable_measure_links()->set_generation(replica.generation);
    Send(stage.worker, std::move(message));
  }
}

void Membership::HandleLinksMeasured(Worker& worker, const cluster::v1::LinksMeasured& message, double now) {
  Replica* const replica = ReplicaOf(worker, message.generation());
  if (replica == nullptr) return;
  Stage& stage = replica->stages[worker.stage];
  const auto end_generation = [&](const auto&... reason) {
    ++worker.failures;
    EndGeneration(*replica, absl::StrCat("worker ", worker.registration.name(), reason...), now + kRetrySeconds, now);
  };
  if (!std::exchange(stage.measures_links, false)) return end_generation(" sent LinksMeasured without being asked");
  for (const cluster::v1::MeasuredLink& link : message.links()) {
    const int to = static_cast<int>(link.stage());
    if (to <= worker.stage || to >= static_cast<int>(replica->stages.size())) {
      return end_generation(" sent LinksMeasured of a link to stage ", to, ", it is stage ", worker.stage, " of ",
                            replica->stages.size());
    }
    links_[{stage.worker, replica->stages[to].worker}] = {link.bytes_per_second(), link.round_trip_seconds()};
  }
  effects_.events.push_back({MembershipEffects::Event::kLinksMeasured, replica->index});
}

void Membership::ForgetLinks(uint64_t id) {
  std::erase_if(links_, [id](const auto& link) { return link.first.first == id || link.first.second == id; });
}

// ---- Splits ----

SplitQuestion Membership::QuestionOfSplit(int index, const ExpectedTraffic& traffic) const {
  const Replica& replica = *replicas_[index];
  SplitQuestion question;
  question.model = std::make_shared<const cluster::v1::Described>(*model_);
  std::vector<uint64_t> members;
  for (const Stage& stage : replica.stages) {
    members.push_back(stage.worker);
    WorkerResources resources = ResourcesOf(stage.worker, stage.share);
    const auto same = std::find_if(question.memories.begin(), question.memories.end(),
                                   [&](const auto& memory) { return *memory == *resources.model; });
    if (same == question.memories.end()) {
      question.memories.push_back(std::make_shared<const ModelMemory>(*resources.model));
      resources.model = question.memories.back().get();
    } else {
      resources.model = same->get();
    }
    question.workers.push_back(resources);
  }
  question.options = replica.limits;
  question.options.split.clear();
  question.options.kept_split.clear();
  question.options.max_sequences = replica.partition.max_sequences;
  question.options.max_logit_rows = replica.partition.max_logit_rows;
  question.options.traffic = traffic;
  question.options.links = LinksAmong(members);
  question.first_layers = replica.partition.first_layers;
  question.cache_tokens = replica.partition.cache_tokens;
  return question;
}

void Membership::Advised(int index, uint64_t generation, SplitAdvice advice, double now) {
  Replica& replica = *replicas_[index];
  if (replica.state != Replica::State::kReady || replica.generation != generation) return;
  replica.advice = std::move(advice);
  if (replica.advice->gain < options_.replan_gain || replica.advice->gain <= 0) {
    replica.better_since = -1;
    return;
  }
  if (replica.better_since < 0) replica.better_since = now;
  if (!options_.replan || !options_.partition.split.empty() || replica.drains_since >= 0) return;
  if (replica.shrunken) return;  // it wants other workers
  const double after = options_.replan_after_seconds;
  if (replica.better_since - replica.last_replan > kSteadyReplans * after) replica.replans_done = 0;
  if (now - replica.better_since < after * (1 << std::min(replica.replans_done, kReplanDoublings))) return;
  Replan(replica, now);
}

void Membership::Replan(Replica& replica, double now) {
  const SplitAdvice& advice = *replica.advice;
  ++replica.replans_done;
  replica.last_replan = now;
  replica.traffic_before = std::exchange(replica.traffic, advice.traffic);
  replica.replans = true;
  replica.next_workers.clear();
  for (const Stage& stage : replica.stages) replica.next_workers.push_back(stage.worker);
  Drain(replica,
        absl::StrFormat("to be split as %s, which takes %.1f %% less time for its traffic",
                        SplitText(advice.first_layers, model_->layers_size()), 100 * advice.gain),
        "another split takes less time for its traffic", now);
}

}  // namespace goldfinch
