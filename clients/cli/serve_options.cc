#include "clients/cli/serve_options.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace goldfinch {

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
