#include "clients/cli/machine/machine_limits.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/small_file.h"
#include "base/units.h"

namespace goldfinch {
namespace {

constexpr size_t kFileBytesMax = 4 << 20;

// The file's text; empty if it cannot be read.
std::string ReadFile(const std::string& path) { return ReadSmallFile(path, kFileBytesMax).value_or(""); }

// A hierarchy of control groups as it is mounted.
struct Hierarchy {
  bool unified = false;                  // version 2
  std::vector<std::string> controllers;  // of version 1
  std::string mount_point;
  std::string mount_root;  // the group that the mount point shows
};

// Mountinfo writes spaces, tabs, newlines and backslashes in octal.
std::string Unescaped(absl::string_view text) {
  std::string plain;
  return absl::CUnescape(text, &plain) ? plain : std::string(text);
}

std::vector<Hierarchy> MountedHierarchies(const std::string& root) {
  std::vector<Hierarchy> found;
  const std::string mountinfo = ReadFile(root + "/proc/self/mountinfo");
  for (const absl::string_view line : absl::StrSplit(mountinfo, '\n')) {
    // ID PARENT MAJOR:MINOR ROOT MOUNT_POINT OPTIONS... - TYPE SOURCE SUPER_OPTIONS
    const std::pair<absl::string_view, absl::string_view> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    const std::vector<absl::string_view> mount = absl::StrSplit(halves.first, ' ');
    const std::vector<absl::string_view> system = absl::StrSplit(halves.second, ' ');
    if (mount.size() < 5 || system.size() < 3 || (system[0] != "cgroup" && system[0] != "cgroup2")) continue;
    Hierarchy& hierarchy = found.emplace_back();
    hierarchy.unified = system[0] == "cgroup2";
    hierarchy.controllers = absl::StrSplit(system[2], ',');
    hierarchy.mount_point = Unescaped(mount[4]);
    hierarchy.mount_root = Unescaped(mount[3]);
  }
  // The usual places, for where mountinfo cannot be read or the files were put there otherwise.
  for (const char* place : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) found.push_back({true, {}, place, "/"});
  for (const char* place : {"memory", "cpu", "cpu,cpuacct", "cpuset"}) {
    found.push_back({false, absl::StrSplit(place, ','), absl::StrCat("/sys/fs/cgroup/", place), "/"});
  }
  return found;
}

// The path of this process's group in the hierarchy, as /proc/self/cgroup names it; "/" if it names none.
std::string GroupPath(const std::string& cgroup, const Hierarchy& hierarchy) {
  for (const absl::string_view line : absl::StrSplit(cgroup, '\n')) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));  // ID:CONTROLLERS:PATH
    if (parts.size() != 3 || !absl::StartsWith(parts[2], "/")) continue;
    if (hierarchy.unified) {
      if (parts[0] == "0" && parts[1].empty()) return parts[2];
      continue;
    }
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    const bool same = std::any_of(controllers.begin(), controllers.end(), [&](const std::string& name) {
      return std::find(hierarchy.controllers.begin(), hierarchy.controllers.end(), name) != hierarchy.controllers.end();
    });
    if (same) return parts[2];
  }
  return "/";
}

// The folders of the group and of all groups above it that the mount point shows, the group's own first.
std::vector<std::string> GroupFolders(const std::string& cgroup, const Hierarchy& hierarchy) {
  std::string path = GroupPath(cgroup, hierarchy);
  // A mount within a container often shows the container's group as its root, while the path begins further up.
  const std::string& root = hierarchy.mount_root;
  if (root != "/") path = path == root || absl::StartsWith(path, root + "/") ? path.substr(root.size()) : "";
  const std::vector<std::string> names = absl::StrSplit(path, '/', absl::SkipEmpty());
  const bool outside = std::find(names.begin(), names.end(), "..") != names.end();
  std::vector<std::string> folders = {hierarchy.mount_point};
  for (const std::string& name : names) {
    if (!outside) folders.push_back(absl::StrCat(folders.back(), "/", name));
  }
  std::reverse(folders.begin(), folders.end());
  return folders;
}

// The first number of the text; none for "max" and for what is no number.
std::optional<int64_t> Number(absl::string_view text) {
  int64_t number = 0;
  const absl::string_view word = text.substr(0, text.find_first_of(" \n"));
  return absl::SimpleAtoi(word, &number) ? std::optional(number) : std::nullopt;
}

// CPUs in a list such as "0-3,8"; 0 if it is none.
int64_t CountCpus(absl::string_view list) {
  int64_t count = 0;
  for (const absl::string_view range : absl::StrSplit(absl::StripAsciiWhitespace(list), ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
    int32_t first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.first, &first)) return 0;
    if (!absl::SimpleAtoi(ends.second.empty() ? ends.first : ends.second, &last) || last < first) return 0;
    count += int64_t{last} - first + 1;
  }
  return count;
}

class Limiter {
 public:
  Limiter(MachineLimits& limits, std::string root) : limits_(limits), root_(std::move(root)) {}

  void Look(const std::string& folder) {
    for (const char* name : {"memory.max", "memory.high", "memory.limit_in_bytes"}) {
      Read(folder, name);
      LimitMemory(Number(text_));
    }
    // Also what the groups above allow that a container does not see.
    Read(folder, "memory.stat");
    constexpr absl::string_view kLimit = "hierarchical_memory_limit ";
    for (const absl::string_view line : absl::StrSplit(text_, '\n')) {
      if (absl::StartsWith(line, kLimit)) LimitMemory(Number(line.substr(kLimit.size())));
    }
    Read(folder, "cpu.max");
    const std::pair<absl::string_view, absl::string_view> quota_and_period =
        absl::StrSplit(text_, absl::MaxSplits(' ', 1));
    LimitCpus(Number(quota_and_period.first), Number(quota_and_period.second));
    Read(folder, "cpu.cfs_period_us");
    const std::optional<int64_t> period = Number(text_);
    Read(folder, "cpu.cfs_quota_us");
    LimitCpus(Number(text_), period);
    for (const char* name : {"cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"}) {
      Read(folder, name);
      LimitCpus(CountCpus(text_), 1);
    }
  }

 private:
  void Read(const std::string& folder, const char* name) {
    path_ = absl::StrCat(folder, "/", name);
    text_ = ReadFile(root_ + path_);
  }

  void LimitMemory(std::optional<int64_t> bytes) {
    if (bytes && *bytes > 0 && *bytes < limits_.memory.bytes) limits_.memory = {*bytes, path_};
  }

  void LimitCpus(std::optional<int64_t> quota, std::optional<int64_t> period) {
    if (!quota || !period || *quota <= 0 || *period <= 0) return;
    const double count = static_cast<double>(*quota) / static_cast<double>(*period);
    if (count < limits_.cpus.count) limits_.cpus = {count, path_};
  }

  MachineLimits& limits_;
  const std::string root_;
  std::string path_, text_;  // of the file that was read last
};

MachineLimits::Cpus UsableCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return {static_cast<double>(CPU_COUNT(&set)), kTheMachine};
  return {static_cast<double>(std::max(1U, std::thread::hardware_concurrency())), kTheMachine};
}

}  // namespace

int MachineLimits::Cpus::threads() const { return std::max(1, static_cast<int>(std::lround(count))); }

std::string MachineLimits::Describe() const {
  return absl::StrCat("CPUs ", cpus.count, " (", cpus.reason, "), memory ", HumanBytes(memory.bytes), " (",
                      memory.reason, ")");
}

MachineLimits ReadMachineLimits(const std::vector<MachineLimits::Memory>& memory, const MachineLimits::Cpus& cpus,
                                const std::string& root) {
  MachineLimits limits;
  limits.cpus = cpus;
  limits.memory =
      *std::min_element(memory.begin(), memory.end(), [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  const std::string tree = absl::EndsWith(root, "/") ? root.substr(0, root.size() - 1) : root;
  const std::string cgroup = ReadFile(tree + "/proc/self/cgroup");
  Limiter limiter(limits, tree);
  for (const Hierarchy& hierarchy : MountedHierarchies(tree)) {
    for (const std::string& folder : GroupFolders(cgroup, hierarchy)) limiter.Look(folder);
  }
  return limits;
}

MachineLimits ThisMachine() {
  std::vector<MachineLimits::Memory> memory = {{int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE), kTheMachine}};
  constexpr std::pair<int, const char*> kResources[] = {{RLIMIT_AS, "the limit of the address space (RLIMIT_AS)"},
                                                        {RLIMIT_DATA, "the limit of data (RLIMIT_DATA)"}};
  for (const auto& [resource, name] : kResources) {
    rlimit limit{};
    const bool known = getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) == 0;
    if (known && limit.rlim_cur < static_cast<rlim_t>(memory[0].bytes)) {
      memory.push_back({static_cast<int64_t>(limit.rlim_cur), name});
    }
  }
  return ReadMachineLimits(memory, UsableCpus(), "/");
}

}  // namespace goldfinch
