#include "tests/parity/golden_case.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/check.h"
#include "base/npy.h"

namespace goldfinch {
namespace {

template <typename T>
T Value(absl::StatusOr<T> value) {
  GF_CHECK(value.ok()) << value.status();
  return *std::move(value);
}

constexpr char kFolder[] = "tests/golden";

std::filesystem::path FindGoldenFolder() {
  if (const char* data = std::getenv("GOLDFINCH_TEST_DATA"); data != nullptr && *data != '\0') {
    const std::filesystem::path folder = std::filesystem::path(data) / kFolder;
    GF_CHECK(std::filesystem::is_directory(folder)) << "GOLDFINCH_TEST_DATA is " << data << ": no folder " << folder;
    return folder;
  }
  std::vector<std::filesystem::path> roots = {"."};
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe");
  const char* run_files = std::getenv("TEST_SRCDIR");
  const char* workspace = std::getenv("TEST_WORKSPACE");
  if (run_files != nullptr && workspace != nullptr) roots.push_back(std::filesystem::path(run_files) / workspace);
  roots.push_back(program.string() + ".runfiles/goldfinch");
  for (auto folder = program.parent_path(); folder != folder.root_path(); folder = folder.parent_path()) {
    roots.push_back(folder);
  }
  for (const std::filesystem::path& root : roots) {
    if (std::filesystem::is_directory(root / kFolder)) return root / kFolder;
  }
  GF_CHECK(false) << "no " << kFolder << " in the working folder, nor where " << program << " is: set "
                  << "GOLDFINCH_TEST_DATA to the folder that has it";
  return {};
}

template <typename T>
double ErrorOf(absl::Span<const float> ours, absl::Span<const T> expected) {
  const double wrong = std::numeric_limits<double>::infinity();
  if (ours.size() != expected.size() || ours.empty()) return wrong;
  double difference = 0, length = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double error = static_cast<double>(ours[i]) - static_cast<double>(expected[i]);
    difference += error * error;
    length += std::pow(static_cast<double>(expected[i]), 2);
  }
  const double relative = std::sqrt(difference / length);
  return std::isnan(relative) ? wrong : relative;
}

}  // namespace

std::vector<std::string> GoldenNames() {
  return {"eagle", "finch", "finch_c2", "finch_c2_gptalpha", "finch_gold", "goldfinch", "gptalpha", "llama"};
}

std::vector<std::string> GoldenNamesWithGold() { return {"finch_gold", "goldfinch"}; }

GoldenCase ReadGoldenCase(const std::string& name) {
  const std::string folder = FindGoldenFolder() / name;
  GoldenCase golden;
  golden.name = name;
  golden.checkpoint = Value(Checkpoint::Open(folder + "/model.pth"));
  golden.config = Value(FindModelConfig("", folder + "/model.pth"));
  golden.tokens = Value(ReadNpyInts(folder + "/tokens.npy")).values;
  golden.logits = Value(ReadNpyFloats(folder + "/logits.npy")).values;
  if (std::filesystem::exists(folder + "/compressed.npy")) {
    golden.compressed = Value(ReadNpyFloats(folder + "/compressed.npy")).values;
  }
  return golden;
}

double RelativeError(absl::Span<const float> ours, absl::Span<const float> expected) { return ErrorOf(ours, expected); }

double RelativeError(absl::Span<const float> ours, absl::Span<const double> expected) {
  return ErrorOf(ours, expected);
}

}  // namespace goldfinch
