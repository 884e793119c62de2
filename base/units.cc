#include "base/units.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace goldfinch {

std::string WithCommas(int64_t number) {
  std::string text = std::to_string(number);
  const int64_t first = text[0] == '-' ? 1 : 0;
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > first; at -= 3) text.insert(at, ",");
  return text;
}

std::string HumanBytes(int64_t bytes) {
  if (bytes < 10'000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* unit = "B";
  for (const char* next : {"kB", "MB", "GB", "TB"}) {
    if (value < 1000) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat("%.3g %s", value, unit);
}

std::string HumanAge(double seconds) {
  seconds = seconds > 0 ? std::min(seconds, 1e12) : 0;  // NaN, too, becomes 0
  const auto whole = static_cast<int64_t>(seconds);
  if (whole < 120) return absl::StrFormat("%.3g s", seconds);
  if (whole < 7200) return absl::StrCat(whole / 60, " min ", whole % 60, " s");
  if (whole < 172800) return absl::StrCat(whole / 3600, " h ", whole / 60 % 60, " min");
  return absl::StrCat(whole / 86400, " d ", whole / 3600 % 24, " h");
}

}  // namespace goldfinch
