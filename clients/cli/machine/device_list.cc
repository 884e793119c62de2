#include "clients/cli/machine/device_list.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace goldfinch {
namespace {

// The number; nothing if the text is none. Numbers that are too large for an int count as the largest one.
std::optional<int> Number(absl::string_view text) {
  constexpr size_t kDigitsMax = 9;
  int number = 0;
  // SimpleAtoi also accepts signs and spaces.
  const bool all_digits = std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c); });
  if (text.empty() || !all_digits) return std::nullopt;
  if (text.size() > kDigitsMax || !absl::SimpleAtoi(text, &number)) return kGpuNumberMax + 1;
  return number;
}

}  // namespace

absl::StatusOr<DeviceList> ParseDeviceList(const std::string& text) {
  if (text == "all") return DeviceList{DeviceList::Kind::kAll};
  if (text == "cpu") return DeviceList{DeviceList::Kind::kCpu};
  DeviceList devices{DeviceList::Kind::kGpus};
  const auto wrong = [&](const auto&... why) { return absl::InvalidArgumentError(absl::StrCat(text, " ", why...)); };
  for (const absl::string_view range : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
    const bool is_range = range.find('-') != absl::string_view::npos;
    const std::optional<int> first = Number(ends.first), last = is_range ? Number(ends.second) : first;
    if (!first || !last) {
      return wrong("is none of all, cpu, and GPU numbers and ranges such as 0,2,4-7: it has \"", range, "\"");
    }
    if (std::max(*first, *last) > kGpuNumberMax) {
      return wrong("has \"", range, "\", the largest GPU number is ", kGpuNumberMax);
    }
    if (*last < *first) return wrong("has \"", range, "\", which runs backwards");
    for (int gpu = *first; gpu <= *last; ++gpu) {
      if (std::find(devices.gpus.begin(), devices.gpus.end(), gpu) != devices.gpus.end()) {
        return wrong("names GPU ", gpu, " twice");
      }
      devices.gpus.push_back(gpu);
    }
  }
  return devices;
}

absl::Status CheckGpusExist(const DeviceList& devices, int gpus_of_machine) {
  for (const int gpu : devices.gpus) {
    if (gpu < gpus_of_machine) continue;
    const std::string has = gpus_of_machine == 0   ? "no GPU that CUDA can use"
                            : gpus_of_machine == 1 ? "one, GPU 0"
                                                   : absl::StrCat(gpus_of_machine, ", GPU 0 to ", gpus_of_machine - 1);
    return absl::InvalidArgumentError(absl::StrCat("--devices names GPU ", gpu, ", this machine has ", has));
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
