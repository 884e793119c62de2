// Bytes of a client: whatever they are, the guard passes what it has consumed and no more, holds what it says, and says
// the same however the bytes are cut.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "coordinator/front/h2_frames.h"
#include "coordinator/front/h2_guard.h"

namespace goldfinch {
namespace {

class CountingBudget final : public CallBudget {
 public:
  ~CountingBudget() override { GF_CHECK(held_ == 0 && calls_ == 0); }
  absl::Status OpenCall() override {
    if (++asked_ % 7 == 0) return absl::ResourceExhaustedError("it is the seventh");
    ++calls_;
    return absl::OkStatus();
  }
  void CloseCall() override { GF_CHECK_GE(--calls_, 0); }
  void Take(int64_t bytes) override { Add(bytes); }
  bool Reserve(int64_t bytes) override {
    if (held_ + bytes > kMost) return false;
    Add(bytes);
    return true;
  }
  void Release(int64_t bytes) override {
    GF_CHECK(bytes >= 0 && bytes <= held_) << bytes << " of " << held_;
    held_ -= bytes;
  }

 private:
  static constexpr int64_t kMost = 300'000;

  void Add(int64_t bytes) {
    GF_CHECK_GE(bytes, 0);
    held_ += bytes;
  }

  int64_t held_ = 0;
  int asked_ = 0;
  int calls_ = 0;
};

struct Result {
  bool ok = true;
  std::string passed;
};

// Feeds the bytes in parts of the size.
Result Feed(const std::string& bytes, size_t part) {
  FrontLimits limits;
  limits.streams_max = 16;
  limits.connection_bytes_max = 200'000;
  CountingBudget budget;
  H2Guard guard(limits, &budget, 1);
  Result result;
  std::string rest;
  for (size_t begin = 0; begin < bytes.size() && result.ok; begin += part) {
    rest += bytes.substr(begin, part);
    const size_t passed_before = result.passed.size();
    const auto consumed = guard.FromClient(rest, 1, &result.passed);
    result.ok = consumed.ok();
    if (!result.ok) break;
    GF_CHECK_LE(*consumed, rest.size());
    GF_CHECK(guard.resume_at() >= 0 || rest.size() - *consumed <= H2Guard::kFrameBytesMax);
    GF_CHECK(guard.streams() <= 16 && guard.parked_bytes() >= 0 && guard.parked_bytes() <= 200'000);
    // A call that is refused, or whose message is too long, adds a reset.
    GF_CHECK_GE(result.passed.size() - passed_before, *consumed);
    rest.erase(0, *consumed);
  }
  return result;
}

// The same bytes as those of the server, and both directions with time between them.
void Mix(const std::string& bytes) {
  CountingBudget budget;
  H2Guard guard(FrontLimits(), &budget, 1);
  std::string to_server, to_client, rest = std::string(h2::kPreface) + bytes, from_server;
  double now = 1;
  for (size_t begin = 0; begin < bytes.size(); begin += 100) {
    now += 7;
    const auto consumed = guard.FromClient(rest, now, &to_server);
    if (!consumed.ok()) {
      guard.GoAway(consumed.status());
      return;
    }
    rest.erase(0, *consumed);
    from_server += bytes.substr(begin, 100);
    from_server.erase(0, guard.FromServer(from_server, &to_client));
    guard.Retry(now, &to_client);
    if (!guard.Tick(now, &to_server, &to_client).ok()) return;
  }
}

}  // namespace
}  // namespace goldfinch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 100'000) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  // Without the preface in every input, half of them would end there.
  const std::string whole = std::string(goldfinch::h2::kPreface) + bytes;
  const goldfinch::Result at_once = goldfinch::Feed(whole, whole.size());
  for (const size_t part : {size_t{1}, size_t{7}, size_t{1000}}) {
    if (part == 1 && size > 2000) continue;
    const goldfinch::Result cut = goldfinch::Feed(whole, part);
    GF_CHECK_EQ(cut.ok, at_once.ok);
    GF_CHECK(!cut.ok || cut.passed == at_once.passed);
  }
  goldfinch::Mix(bytes);
  return 0;
}
