#include "clients/cli/flags/serve_options.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace goldfinch {

bool ParsePlannedWorker(const std::string& text, WorkerResources* worker) {
  constexpr double kMost = 1e9, kMostGigabytes = 1e6;
  std::vector<double> numbers;
  for (const absl::string_view number : absl::StrSplit(text, ',')) {
    numbers.push_back(0);
    // Written so that NaN is refused.
    if (!absl::SimpleAtod(number, &numbers.back()) || !(numbers.back() > 0 && numbers.back() < kMost)) return false;
  }
  if (numbers.size() != 3 || numbers[0] > kMostGigabytes) return false;
  worker->memory_bytes = static_cast<int64_t>(numbers[0] * 1e9);
  worker->flops = numbers[1] * 1e12;
  worker->read_bytes_per_second = numbers[2] * 1e9;
  return worker->flops >= 1 && worker->read_bytes_per_second >= 1;
}

std::optional<SplitAim> ParseSplitAim(const std::string& text) {
  if (text == "auto") return SplitAim::kAuto;
  if (text == "border") return SplitAim::kBorder;
  if (text == "balanced") return SplitAim::kBalanced;
  return std::nullopt;
}

bool ParseSplit(const std::string& text, std::vector<int>* first_layers, int* layers) {
  *layers = 0;
  for (const absl::string_view range : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
    int first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.first, &first) || !absl::SimpleAtoi(ends.second, &last)) return false;
    if (first != *layers || last < first || last >= 1 << 20) return false;
    first_layers->push_back(first);
    *layers = last + 1;
  }
  return true;
}

}  // namespace goldfinch
