// NumPy's .npy files, as far as token ids and logits need them: little-endian, C order, version 1 to 3.
#ifndef GOLDFINCH_BASE_NPY_H_
#define GOLDFINCH_BASE_NPY_H_

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace goldfinch {

inline constexpr int64_t kNpyElementsMax = int64_t{1} << 30;

template <typename T>
struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<T> values;
};

// Integers of 1, 2, 4 or 8 bytes, at most `limit` of them: checked before memory is taken. Errors name the file, and
// the element if a value does not fit.
absl::StatusOr<NpyArray<int32_t>> ReadNpyInts(const std::string& path, int64_t limit = kNpyElementsMax);
// Reads an array of float32.
absl::StatusOr<NpyArray<float>> ReadNpyFloats(const std::string& path, int64_t limit = kNpyElementsMax);

// Writes a float32 matrix row by row. A regular file is complete once Close has returned OK; until then it has another
// name beside it, so that a broken run leaves nothing that looks finished. Anything else (a pipe, a device) is written
// to directly.
class NpyWriter {
 public:
  static absl::StatusOr<NpyWriter> Create(const std::string& path, int64_t rows, int64_t columns);
  absl::Status Append(absl::Span<const float> values);
  absl::Status Close();

 private:
  NpyWriter() = default;

  std::string path_;     // of the finished file
  std::string writing_;  // of what is written until then; the same where nothing is renamed
  std::ofstream file_;
  int64_t missing_ = 0;  // values still to come
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_NPY_H_
