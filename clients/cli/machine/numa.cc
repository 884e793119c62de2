#include "clients/cli/machine/numa.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/small_file.h"

namespace goldfinch {
namespace {

constexpr size_t kFileBytesMax = 1 << 16;
constexpr char kNodeFolder[] = "/sys/devices/system/node/";

cpu_set_t SetOf(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return set;
}

// Numbers of CPUs or nodes below `limit`.
std::vector<int> ParseList(const std::string& list, int limit) {
  std::vector<int> numbers;
  for (const absl::string_view range : absl::StrSplit(absl::StripAsciiWhitespace(list), ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
    int first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.first, &first) || first < 0) return {};
    if (!absl::SimpleAtoi(ends.second.empty() ? ends.first : ends.second, &last) || last < first) return {};
    if (last >= limit) return {};
    for (int number = first; number <= last; ++number) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

}  // namespace

std::vector<int> ParseCpuList(const std::string& list) { return ParseList(list, CPU_SETSIZE); }

std::vector<NumaNode> ReadNumaNodes(const std::vector<int>& allowed, const std::string& root) {
  constexpr int kNodesMax = 1024;
  const std::string folder = (root == "/" ? "" : root) + kNodeFolder;
  std::vector<NumaNode> nodes;
  size_t found = 0;
  for (const int number : ParseList(ReadSmallFile(folder + "online", kFileBytesMax).value_or(""), kNodesMax)) {
    const std::vector<int> cpus =
        ParseCpuList(ReadSmallFile(absl::StrCat(folder, "node", number, "/cpulist"), kFileBytesMax).value_or(""));
    NumaNode node{number};
    std::set_intersection(cpus.begin(), cpus.end(), allowed.begin(), allowed.end(), std::back_inserter(node.cpus));
    found += node.cpus.size();
    if (!node.cpus.empty()) nodes.push_back(std::move(node));
  }
  return found == allowed.size() ? nodes : std::vector<NumaNode>();
}

std::vector<NumaNode> ThisMachinesNodes() {
  cpu_set_t set;
  std::vector<int> allowed;
  // Fails where there may be more CPUs than a cpu_set_t has.
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) allowed.push_back(cpu);
  }
  return ReadNumaNodes(allowed, "/");
}

RunsOn::RunsOn(const std::vector<int>& cpus) {
  if (cpus.empty() || sched_getaffinity(0, sizeof(before_), &before_) != 0) return;
  const cpu_set_t set = SetOf(cpus);
  changed_ = sched_setaffinity(0, sizeof(set), &set) == 0;
}

RunsOn::~RunsOn() {
  if (changed_) sched_setaffinity(0, sizeof(before_), &before_);
}

}  // namespace goldfinch
