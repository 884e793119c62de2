// Coordinator: what the traffic is, and whether another split would suit it.
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/coordinator.h"
#include "coordinator/membership/membership.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/planner/split_advice.h"

namespace goldfinch {

void Coordinator::WatchTraffic(double now) {
  std::vector<int> sequences;
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    sequences.push_back(scheduler_.Load(replica).sequences);
  }
  traffic_.Observe(sequences, now);
  if (now < next_advice_) return;
  next_advice_ = now + options_.split_period_seconds;
  const std::optional<ExpectedTraffic> traffic = traffic_.Average();
  if (!traffic) return;
  metrics_->SetTraffic(*traffic);
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    if (membership_.ready(replica) && !advising_[replica]) ConsiderSplit(replica, *traffic);
  }
}

// On a thread of its own: a search takes as long as many steps of a small model.
void Coordinator::ConsiderSplit(int replica, const ExpectedTraffic& traffic) {
  advising_[replica] = true;
  const uint64_t generation = membership_.generation(replica);
  planning_.Post([this, replica, generation, question = membership_.QuestionOfSplit(replica, traffic)] {
    Post([this, replica, generation, advice = AdviseOnSplit(question)](double now) {
      advising_[replica] = false;
      if (membership_.ready(replica) && membership_.generation(replica) == generation) {
        metrics_->SetSplitGain(replica, advice.gain);
      }
      membership_.Advised(replica, generation, advice, now);
    });
  });
}

void Coordinator::PublishLinks(int replica) {
  std::vector<Metrics::Link> links;
  for (const Membership::LinkView& link : membership_.Links(replica)) {
    links.push_back({link.from, link.to, link.bytes_per_second, link.round_trip_seconds});
  }
  metrics_->SetLinks(replica, links);
}

}  // namespace goldfinch
