#include "worker/link_speed.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "base/status.h"

namespace goldfinch {
namespace {

// A Send waits while the receiver is more than this many messages behind, so as many Sends take a round trip.
constexpr int kWindow = Transport::kAheadSends;
// What else uses the machines and the network disturbs some of the rounds, not all of them.
constexpr int kRounds = 3;
// Enough that a fast link is busy with messages and not with their answers; a round of them takes 4 ms at 1 Gbit/s.
constexpr int64_t kLargeBytesMax = int64_t{128} << 10;
constexpr int64_t kSmallBytes = 1;
// The time of a large message tells something of the link if it is so many times that of a small one.
constexpr double kLeastRatio = 1.5;

// The receiver takes part from the first round of either size on, which nobody times.
constexpr int kMessages = (1 + kRounds) * kWindow;

class Probe {
 public:
  static absl::StatusOr<Probe> Create(Transport& transport, Backend& backend) {
    GF_ASSIGN_OR_RETURN(std::shared_ptr<void> memory, backend.Allocate(kLargeBytesMax, "measuring links"));
    return Probe(transport, backend, std::move(memory));
  }

  Probe(Probe&&) = default;
  // The device may still be about to read what was sent last.
  ~Probe() {
    if (memory_ != nullptr) backend_.Synchronize().IgnoreError();
  }

  absl::StatusOr<LinkSpeed> MeasureTo(int stage, int64_t bytes_max) {
    LinkSpeed speed{.stage = stage};
    // The first messages wait until the receiver is there.
    GF_RETURN_IF_ERROR(Send(stage, kSmallBytes, kWindow));
    GF_ASSIGN_OR_RETURN(const double small, FastestRound(stage, kSmallBytes));
    const int64_t bytes = LargeBytes(bytes_max);
    GF_ASSIGN_OR_RETURN(const double large, FastestRound(stage, bytes));
    speed.round_trip_seconds = small;
    if (large > kLeastRatio * small) {
      speed.bytes_per_second = std::max(1.0, static_cast<double>(kWindow * (bytes - kSmallBytes)) / (large - small));
    }
    return speed;
  }

  absl::Status AnswerFrom(int stage, int64_t bytes_max) {
    GF_RETURN_IF_ERROR(Receive(stage, kSmallBytes, kWindow + kMessages));
    return Receive(stage, LargeBytes(bytes_max), kMessages);
  }

 private:
  Probe(Transport& transport, Backend& backend, std::shared_ptr<void> memory)
      : transport_(transport), backend_(backend), memory_(std::move(memory)) {}

  static int64_t LargeBytes(int64_t bytes_max) { return std::min(bytes_max, kLargeBytesMax); }
  Tensor Rows(int64_t bytes) const { return {memory_.get(), DType::kU8, {bytes}}; }

  absl::Status Send(int stage, int64_t bytes, int count) {
    for (int i = 0; i < count; ++i) GF_RETURN_IF_ERROR(transport_.Send(stage, Rows(bytes)));
    return absl::OkStatus();
  }

  // Seconds for kWindow messages, after as many that warm up.
  absl::StatusOr<double> FastestRound(int stage, int64_t bytes) {
    using Clock = std::chrono::steady_clock;
    GF_RETURN_IF_ERROR(Send(stage, bytes, kWindow));
    double fastest = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
      const Clock::time_point begin = Clock::now();
      GF_RETURN_IF_ERROR(Send(stage, bytes, kWindow));
      fastest = std::min(fastest, std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return fastest;
  }

  absl::Status Receive(int stage, int64_t bytes, int count) {
    for (int i = 0; i < count; ++i) {
      GF_RETURN_IF_ERROR(transport_.Recv(stage, Rows(bytes)));
      // Recv may return before the rows have come, and the next message must not be counted before.
      GF_RETURN_IF_ERROR(backend_.Synchronize());
      GF_RETURN_IF_ERROR(transport_.status());
    }
    return absl::OkStatus();
  }

  Transport& transport_;
  Backend& backend_;
  std::shared_ptr<void> memory_;
};

}  // namespace

// Links lead to later stages. The first of them, by where they come from and then by where they lead, has both of its
// ends at it, so no two stages wait for each other.
absl::StatusOr<std::vector<LinkSpeed>> MeasureLinks(absl::Span<const StageTraffic> traffic, Transport& transport,
                                                    Backend& backend) {
  GF_ASSIGN_OR_RETURN(Probe probe, Probe::Create(transport, backend));
  const int stages = static_cast<int>(traffic.size());
  for (int stage = 0; stage < stages; ++stage) {
    const int64_t bytes_max = traffic[stage].receive_bytes_max;
    if (bytes_max > 0) GF_RETURN_IF_ERROR(probe.AnswerFrom(stage, bytes_max));
  }
  std::vector<LinkSpeed> links;
  for (int stage = 0; stage < stages; ++stage) {
    const int64_t bytes_max = traffic[stage].send_bytes_max;
    if (bytes_max == 0) continue;
    GF_ASSIGN_OR_RETURN(const LinkSpeed link, probe.MeasureTo(stage, bytes_max));
    links.push_back(link);
  }
  return links;
}

}  // namespace goldfinch
