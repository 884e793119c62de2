#include "clients/cli/serve/context_setup.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/units.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/memory_files.h"
#include "coordinator/store/store.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

constexpr int64_t kDiskBytes = 100'000'000'000;

// Half of the file system that the folder is on, or will be.
int64_t DiskBytes(const std::string& folder) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(folder, error);
  if (!std::filesystem::exists(path, error)) path = path.parent_path();
  const std::filesystem::space_info space = std::filesystem::space(path, error);
  if (error || space.capacity == static_cast<std::uintmax_t>(-1)) return kDiskBytes;
  return std::min(kDiskBytes, static_cast<int64_t>(space.capacity / 2));
}

// A store in memory goes with its files.
struct MemoryStore {
  MemoryFiles files;
  std::unique_ptr<SegmentStore> store;
};

absl::Status OpenInMemory(int64_t bytes, CoordinatorOptions* coordinator) {
  auto memory = std::make_shared<MemoryStore>();
  absl::StatusOr<std::unique_ptr<SegmentStore>> store =
      SegmentStore::Open({.folder = "memory", .bytes_max = bytes, .files = &memory->files});
  if (!store.ok()) return store.status();
  memory->store = *std::move(store);
  coordinator->store = std::shared_ptr<SegmentStore>(memory, memory->store.get());
  coordinator->store_tier.name = "the coordinator's memory";
  coordinator->store_tier.durable = false;
  coordinator->store_tier.bytes_max = bytes;
  coordinator->store_tier.rate = TransferRate(1e9, 1e-3);
  spdlog::info("contexts: texts of at least {} tokens are kept in up to {} of this process's memory, too",
               coordinator->store_tier.protect_tokens, HumanBytes(bytes));
  return absl::OkStatus();
}

}  // namespace

absl::Status OpenContextStore(const ServeOptions& options, bool embedded, CoordinatorOptions* coordinator) {
  if (options.context_dir.empty() && options.context_disk >= 0) {
    return UsageError("--context-disk limits the files in --context-dir, which is not given");
  }
  if (options.no_prefix_cache) {
    if (options.context_dir.empty()) return absl::OkStatus();
    return UsageError("--context-dir keeps what --no-prefix-cache says not to keep");
  }
  coordinator->store_tier.protect_tokens = options.protect_tokens;
  if (options.context_dir.empty()) {
    // Workers in this process are not lost without it.
    if (embedded) return absl::OkStatus();
    const int64_t bytes =
        options.protect_memory >= 0 ? options.protect_memory : ThisMachine().memory.bytes / kContextMemoryPart;
    return bytes == 0 ? absl::OkStatus() : OpenInMemory(bytes, coordinator);
  }
  const int64_t bytes = options.context_disk >= 0 ? options.context_disk : DiskBytes(options.context_dir);
  if (bytes == 0) return UsageError("--context-disk is 0: without room on disk, leave --context-dir out");
  absl::StatusOr<std::unique_ptr<SegmentStore>> store =
      SegmentStore::Open({.folder = options.context_dir, .bytes_max = bytes});
  if (!store.ok()) {
    return absl::Status(store.status().code(), absl::StrCat("--context-dir: ", store.status().message()));
  }
  coordinator->store = *std::move(store);
  coordinator->store_tier.name = "the disk";
  coordinator->store_tier.durable = true;
  coordinator->store_tier.bytes_max = bytes;
  const StoreTotals totals = coordinator->store->totals();
  spdlog::info("contexts: {} of {} are used in {}", HumanBytes(totals.bytes), HumanBytes(bytes), options.context_dir);
  return absl::OkStatus();
}

}  // namespace goldfinch
