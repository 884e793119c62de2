#include "coordinator/front/admission.h"

#include <sys/resource.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

absl::Status Admission::Enter(const PeerAddress& peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (connections_ >= connections_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("there are ", connections_, " connections, which is the limit"));
  }
  if (!peer.loopback) {
    int& count = by_network_[peer.network];
    if (count >= per_network_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("there are ", count, " connections from this address, which is the limit"));
    }
    ++count;
  }
  ++connections_;
  return absl::OkStatus();
}

void Admission::Leave(const PeerAddress& peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  --connections_;
  if (peer.loopback) return;
  const auto found = by_network_.find(peer.network);
  GF_CHECK(found != by_network_.end());
  if (--found->second == 0) by_network_.erase(found);
}

void Admission::Fault(const PeerAddress& peer, double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (faulty_.size() >= kFaultyMax) {
    if (now < sweep_at_) return;
    sweep_at_ = now + kSweepSeconds;
    absl::erase_if(faulty_, [now](const auto& entry) { return entry.second.full(now); });
    if (faulty_.size() >= kFaultyMax) return;
  }
  TokenBucket& bucket = faulty_.try_emplace(peer.network, kFaultsASecond, kFaultsAtOnce, now).first->second;
  // A debt that grew for ever would lock out others behind the same address.
  if (bucket.Tokens(now) > -kHoldSecondsMax * kFaultsASecond) bucket.Spend(1, now);
}

double Admission::HoldSeconds(const PeerAddress& peer, double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = faulty_.find(peer.network);
  if (found == faulty_.end()) return 0;
  if (found->second.full(now)) {
    faulty_.erase(found);
    return 0;
  }
  return std::min(found->second.SecondsUntil(0, now), kHoldSecondsMax);
}

int RaiseDescriptorLimit() {
  // What the kernel allows at most without being told otherwise, and far more than is needed.
  constexpr rlim_t kMost = 1 << 20;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  const rlim_t wanted = std::min(limit.rlim_max, kMost);
  if (limit.rlim_cur < wanted) {
    const rlimit raised = {wanted, limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) {
      spdlog::info("the limit of open files is raised from {} to {}", limit.rlim_cur, wanted);
      limit.rlim_cur = wanted;
    }
  }
  return static_cast<int>(std::min(limit.rlim_cur, kMost));
}

}  // namespace goldfinch
