#include "clients/cli/machine/machine.h"

#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <initializer_list>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/host_port.h"
#include "base/resolve.h"
#include "base/safe_text.h"
#include "base/shared_key.h"
#include "base/small_file.h"
#include "base/status.h"

namespace goldfinch {
namespace {

constexpr size_t kFileBytesMax = 4 << 20;

std::string HashOnThisMachine(const char* what, std::initializer_list<std::string_view> parts) {
  const absl::StatusOr<std::string> boot = ReadSmallFile("/proc/sys/kernel/random/boot_id", 256);
  if (!boot.ok()) return "";
  const SharedKey key(*boot);
  std::string all;
  for (const std::string_view part : parts) absl::StrAppend(&all, std::string(part), "\n");
  return absl::BytesToHexString(key.Prove(what, {all}));
}

// `reason` is that of MachineLimits. A file of a control group stands for its group, whose folder has one number
// wherever it is mounted.
std::string PoolOf(const char* what, const std::string& reason, std::string_view part) {
  if (reason == kTheMachine) return HashOnThisMachine(what, {reason, part});
  struct stat folder {};
  if (!absl::StartsWith(reason, "/") || stat(std::filesystem::path(reason).parent_path().c_str(), &folder) != 0) {
    return "";  // a limit of this process alone
  }
  return HashOnThisMachine(what, {absl::StrCat(folder.st_dev, ":", folder.st_ino)});
}

}  // namespace

std::string ProcessName() {
  char host[256] = "worker";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host, ":", getpid());
}

absl::StatusOr<std::string> AddressTowards(const std::string& target) {
  GF_ASSIGN_OR_RETURN(const HostPort parsed, ParseHostPort(target));
  return OwnAddressTowards(parsed.host, parsed.port);
}

std::string MemoryPool(const MachineLimits& limits) { return PoolOf("memory", limits.memory.reason, ""); }

std::string CpuPool(const MachineLimits& limits) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  return PoolOf("cpus", limits.cpus.reason, {reinterpret_cast<const char*>(&allowed), sizeof(allowed)});
}

std::string OwnNetwork() {
  std::error_code error;
  const std::string space = std::filesystem::read_symlink("/proc/self/ns/net", error).string();
  return error ? "" : HashOnThisMachine("network", {space});
}

std::string ProcessorModel() {
  constexpr absl::string_view kField = "model name";
  const std::string text = ReadSmallFile("/proc/cpuinfo", kFileBytesMax).value_or("");
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StartsWith(line, kField)) return SafeText(std::string(absl::StripAsciiWhitespace(field.second)), 256);
  }
  return "";
}

}  // namespace goldfinch
