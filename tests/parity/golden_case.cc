#include "tests/parity/golden_case.h"

#include <cmath>
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
  const std::string folder = "tests/golden/" + name;
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
