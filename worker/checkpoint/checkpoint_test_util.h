// Writes checkpoint files for tests: whole ones from tensors, or piece by piece to get something wrong.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_TEST_UTIL_H_
#define GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_TEST_UTIL_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace goldfinch {

struct TestTensor {
  std::string name;
  DType dtype = DType::kF32;  // a floating-point type
  std::vector<int64_t> shape;
  std::vector<float> values;  // row-major; rounded to `dtype` (to nearest, ties to even)
};

// Files as torch.save and the safetensors library write them.
absl::Status WritePth(const std::string& path, const std::vector<TestTensor>& tensors);
absl::Status WriteSafetensors(const std::string& path, const std::vector<TestTensor>& tensors);
// The bytes of a .pth file with these tensors.
std::string PthBytes(const std::vector<TestTensor>& tensors);
std::string SafetensorsBytes(const std::vector<TestTensor>& tensors);

// Little-endian elements of `dtype`.
std::string EncodeElements(DType dtype, const std::vector<float>& values);
// All elements of a floating-point tensor.
std::vector<float> DecodeElements(const ConstTensor& tensor);

// A safetensors file of any dtypes, shapes and metadata, right or wrong.
struct RawTensor {
  std::string name;
  std::string dtype;  // "U8"
  std::string shape;  // "[2, 8, 16, 4]"
  std::string bytes;
};
std::string RawSafetensors(const std::vector<RawTensor>& tensors, const std::string& metadata);
// head.weight in 8 bits and key.weight in 4, with a vector; `a` and `b` by inputs; and the metadata that goes with
// them.
std::vector<RawTensor> QuantizedTensors();
extern const char kQuantizedMetadata[];

absl::Status WriteFile(const std::string& path, const std::string& bytes);

// ---- Pieces of a .pth file.

// A tensor in a pickle: a view of a storage.
struct TestView {
  std::string name;
  DType dtype = DType::kF32;
  std::string storage;  // key
  int64_t storage_elements = 0;
  int64_t offset = 0;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

// A pickle program, built opcode by opcode.
class PickleWriter {
 public:
  PickleWriter() : bytes_("\x80\x02") {}

  PickleWriter& Op(const std::string& bytes) {
    bytes_ += bytes;
    return *this;
  }
  PickleWriter& Global(const std::string& module, const std::string& name) {
    return Op("c" + module + "\n" + name + "\n");
  }
  PickleWriter& Str(const std::string& text);
  PickleWriter& Int(int64_t value);
  PickleWriter& Tuple(const std::vector<int64_t>& values);
  PickleWriter& Tensor(const TestView& view);
  // The bytes so far, and the final STOP.
  std::string Finish() const { return bytes_ + "."; }

 private:
  std::string bytes_;
};

// The pickle of a dict of tensors.
std::string StateDictPickle(const std::vector<TestView>& views);

struct ZipFile {
  std::string name;
  std::string bytes = "";
  int method = 0;             // 8 claims that the bytes are deflated
  int64_t size_delta = 0;     // what both headers lie about the size
  uint32_t crc32_xor = 0;     // what both headers lie about the checksum
  int64_t local_offset = -1;  // where the directory says the local header is; -1: the truth
};

// A zip archive as torch.save writes it: nothing compressed, contents at multiples of `alignment_bytes`. With `zip64`
// all sizes and offsets stand in zip64 records.
std::string ZipBytes(const std::vector<ZipFile>& files, int alignment_bytes = 64, bool zip64 = false);

// A .pth archive, named "model": a pickle, and storages by their key.
std::string PthBytes(const std::string& pickle, const std::vector<std::pair<std::string, std::string>>& storages);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_TEST_UTIL_H_
