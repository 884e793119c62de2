#include "clients/cli/terminal/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace goldfinch {
namespace {

constexpr char kUsagePayload[] = "goldfinch/usage";
constexpr std::chrono::milliseconds kQuiet{300};  // work that takes less shows no bar
constexpr std::chrono::milliseconds kRedraw{100};
constexpr int kBarCells = 24;

}  // namespace

absl::Status AsUsageError(const absl::Status& status) {
  absl::Status result = status;
  result.SetPayload(kUsagePayload, absl::Cord());
  return result;
}

absl::Status UsageError(const std::string& message) { return AsUsageError(absl::InvalidArgumentError(message)); }

absl::Status FlushOutput() {
  if (std::cout.flush() && std::fflush(stdout) == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError("standard output cannot be written");
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  return status.GetPayload(kUsagePayload).has_value() ? 2 : 1;
}

ProgressBar::ProgressBar(std::string label, std::string unit)
    : label_(std::move(label)), unit_(std::move(unit)), visible_(isatty(STDERR_FILENO) != 0) {}

void ProgressBar::Update(int64_t done, int64_t all) {
  const Clock::time_point now = Clock::now();
  if (!visible_ || now - start_ < kQuiet || now - drawn_ < kRedraw) return;
  drawn_ = now;
  on_screen_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double share = all > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(all)) : 0;
  const int cells = static_cast<int>(share * kBarCells);
  const auto rate = static_cast<int64_t>(static_cast<double>(done) / seconds);
  const std::string amount = unit_ == "bytes"
                                 ? absl::StrCat(HumanBytes(done), " of ", HumanBytes(all), ", ", HumanBytes(rate), "/s")
                                 : absl::StrCat(WithCommas(done), " of ", WithCommas(all), " ", unit_, ", ",
                                                WithCommas(rate), " ", unit_, "/s");
  std::fprintf(stderr, "\r\033[K%s [%s%s] %s", label_.c_str(), std::string(cells, '#').c_str(),
               std::string(kBarCells - cells, '.').c_str(), amount.c_str());
  std::fflush(stderr);
}

void ProgressBar::Done() {
  if (!on_screen_) return;
  on_screen_ = false;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
}

}  // namespace goldfinch
