#include "clients/cli/machine/placement.h"

#include <algorithm>
#include <cstddef>

#include "base/check.h"

namespace goldfinch {

std::vector<int> PlaceStages(int stages, absl::Span<const int64_t> sizes) {
  GF_CHECK(stages >= 1 && !sizes.empty());
  std::vector<int> counts(sizes.size(), 0);
  for (int stage = 0; stage < stages; ++stage) {
    size_t to = static_cast<size_t>(stage);
    if (to >= sizes.size()) {
      // What each of its stages would have. The first of equal ones wins.
      const auto part = [&](size_t device) { return static_cast<double>(sizes[device]) / (counts[device] + 1); };
      to = 0;
      for (size_t device = 1; device < sizes.size(); ++device) {
        if (part(device) > part(to)) to = device;
      }
    }
    ++counts[to];
  }
  std::vector<int> device_of_stage;
  for (size_t device = 0; device < sizes.size(); ++device) {
    device_of_stage.insert(device_of_stage.end(), counts[device], static_cast<int>(device));
  }
  return device_of_stage;
}

std::vector<int> StagesOnEach(absl::Span<const int> device_of_stage, int devices) {
  std::vector<int> counts(devices, 0);
  for (const int device : device_of_stage) ++counts[device];
  return counts;
}

std::vector<CpuPart> PlaceOnNodes(int stages, int threads, absl::Span<const NumaNode> nodes) {
  std::vector<CpuPart> parts(stages);
  const auto count = static_cast<int>(nodes.size());
  if (count < 2 || stages < 2) {
    for (CpuPart& part : parts) part.threads = std::max(1, threads / stages);
    return parts;
  }
  std::vector<int64_t> sizes;
  int64_t all = 0;
  for (const NumaNode& node : nodes) {
    sizes.push_back(static_cast<int64_t>(node.cpus.size()));
    all += sizes.back();
  }
  const auto set_threads = [&](CpuPart& part, int sharing) {
    part.threads = std::max(1, static_cast<int>(threads * static_cast<int64_t>(part.cpus.size()) / (all * sharing)));
  };
  if (stages >= count) {
    const std::vector<int> node_of_stage = PlaceStages(stages, sizes);
    const std::vector<int> sharing = StagesOnEach(node_of_stage, count);
    for (int stage = 0; stage < stages; ++stage) {
      parts[stage].cpus = nodes[node_of_stage[stage]].cpus;
      set_threads(parts[stage], sharing[node_of_stage[stage]]);
    }
    return parts;
  }
  for (int stage = 0; stage < stages; ++stage) {
    std::vector<int>& cpus = parts[stage].cpus;
    for (int node = stage * count / stages; node < (stage + 1) * count / stages; ++node) {
      cpus.insert(cpus.end(), nodes[node].cpus.begin(), nodes[node].cpus.end());
    }
    std::sort(cpus.begin(), cpus.end());
    set_threads(parts[stage], /*sharing=*/1);
  }
  return parts;
}

}  // namespace goldfinch
