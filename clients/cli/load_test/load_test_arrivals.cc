#include "clients/cli/load_test/load_test_arrivals.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace goldfinch {
namespace {

constexpr double kSecondsAfterFailure = 0.5;

}  // namespace

Arrivals::Arrivals(std::vector<scenario::ClientGroup> groups, uint64_t seed) : random_(seed) {
  for (scenario::ClientGroup& settings : groups) {
    Group& group = groups_.emplace_back();
    group.settings = std::move(settings);
    group.due_count.resize(group.settings.clients());
    if (!group.settings.until_others_end()) ++open_;
  }
  GF_CHECK(open_ > 0) << "no group would end";
  for (int i = 0; i < static_cast<int>(groups_.size()); ++i) {
    const scenario::ClientGroup& settings = groups_[i].settings;
    const double first = settings.has_rate() ? RateGap(groups_[i]) : 0;
    for (int client = 0; client < settings.clients(); ++client) Push(settings.start_seconds() + first, i, client);
    Settle(i);
  }
}

double Arrivals::RateGap(const Group& group) { return random_.Exponential() / group.settings.rate(); }

void Arrivals::Push(double seconds, int group, int client) {
  Group& of = groups_[group];
  const scenario::ClientGroup& settings = of.settings;
  if (settings.has_seconds()) {
    if (seconds > settings.start_seconds() + settings.seconds()) return;
  } else if (!settings.until_others_end() && of.due_count[client] >= settings.requests()) {
    return;
  }
  ++of.due_count[client];
  ++of.pending;
  due_.push({seconds, order_++, group, client});
}

// Counts the group as ended if it has nothing left to do.
void Arrivals::Settle(int group) {
  if (groups_[group].pending == 0 && !groups_[group].settings.until_others_end()) --open_;
}

std::optional<Arrival> Arrivals::Next(double now) {
  if (over() || due_.empty() || due_.top().seconds > now) return std::nullopt;
  const Due due = due_.top();
  due_.pop();
  const Group& group = groups_[due.group];
  if (group.settings.has_rate()) Push(due.seconds + RateGap(group), due.group, due.client);
  if (group.settings.has_burst_every_seconds()) {
    Push(due.seconds + group.settings.burst_every_seconds(), due.group, due.client);
  }
  return Arrival{due.group, due.client, number_++, due.seconds};
}

std::optional<double> Arrivals::next_seconds() const {
  if (over() || due_.empty()) return std::nullopt;
  return due_.top().seconds;
}

void Arrivals::Ended(int group, int client, bool failed, double now) {
  Group& of = groups_[group];
  GF_CHECK(of.pending > 0) << "group " << group;
  if (!of.settings.has_rate() && !of.settings.has_burst_every_seconds()) {
    Push(now + std::max(of.settings.think_seconds(), failed ? kSecondsAfterFailure : 0), group, client);
  }
  --of.pending;
  Settle(group);
}

}  // namespace goldfinch
