// Checkpoint files as named tensors: `.pth` (a zip with a pickle) and safetensors, told apart by their first bytes.
//
// The file is memory-mapped and nothing in it is executed. Every byte is hostile: a reader returns a Status that names
// the file and the tensor, the value and the limit; it never crashes and never allocates more than the file could
// justify.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_H_
#define GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapped_file.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/layout.h"

namespace goldfinch {

struct CheckpointTensor {
  std::string name;  // the authors' name, whatever the file's naming scheme: "blocks.0.att.key.weight"
  ConstTensor data;  // dense, rank 1 to 4, aligned for its type; in the mapped file, or in memory the Checkpoint owns
  // Given for a quantized matrix (data is kInt8 or kInt4, its shape [out, in] in any case): see kernels/quantize.h.
  ConstTensor scales = {};
  bool by_input = false;

  int64_t bytes() const { return data.bytes() + scales.bytes(); }
};

// How a safetensors file says that it holds quantized matrices (docs/decisions/0015): a matrix NAME is a tensor of
// bytes, NAME and a suffix, and one of scales. CheckpointTensor has them as one tensor again, named NAME.
constexpr std::string_view kQuantizedVersionKey = "goldfinch.quantised_version";  // metadata; spelled so in files
constexpr std::string_view kQuantizedVersion = "1";
constexpr std::string_view kQuantizedSourceKey = "goldfinch.source_fingerprint";  // of the model it was made from
struct QuantizedForm {
  std::string_view suffix;
  DType dtype;
  bool by_input;
};
constexpr QuantizedForm kQuantizedForms[] = {{".q8", DType::kInt8, false},
                                             {".q4", DType::kInt4, false},
                                             {".q8t", DType::kInt8, true},
                                             {".q4t", DType::kInt4, true}};
constexpr std::string_view kScalesSuffix = ".scales";

struct VerifyOptions {
  int threads = 1;
  // Whether to compare checksums. torch can be told to write none (torch.serialization.set_crc32_options(False)): the
  // weights of such a file are DATA_LOSS unless this is off.
  bool checksums = true;
  // Which tensors: only parts of the file that hold one of them are read. Null: all parts, those of no tensor too.
  std::function<bool(std::string_view name)> tensors = nullptr;
  // Called now and then, by the calling thread alone, with the bytes read so far. May be null.
  std::function<void(int64_t bytes)> progress = nullptr;
};

// Thread-safe once opened. Tensors point into it: it must outlive them. The file must not be cut short meanwhile
// (MappedFile).
class Checkpoint {
 public:
  // `path` is a file as torch.save or the safetensors library writes it, whatever its name; or a
  // *.safetensors.index.json or *.bin.index.json, which stands for the shards that it lists; or a folder that holds,
  // in this order of preference, model.safetensors.index.json, model.safetensors, pytorch_model.bin.index.json or
  // pytorch_model.bin, else exactly one .pth or .safetensors file.
  //
  // Maps the file and reads its directory. Of the weights it reads only those that it must copy: strided views, and
  // tensors that are not aligned for their type (torch.save aligns all). Copies together never exceed the size of the
  // file. Errors: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT, DATA_LOSS (the checksum of the .pth directory of
  // tensors), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  // The same for a file in memory, which must outlive the Checkpoint; `path` is for messages only.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> OpenBytes(std::string_view file, std::string path);

  const std::string& path() const { return path_; }
  // Bytes of all shards together.
  int64_t file_bytes() const { return file_bytes_; }
  // Memory that copies of tensors take; 0 for files as torch.save and safetensors write them of plain models.
  int64_t owned_bytes() const;
  // DATA_LOSS names a file that was changed since it was opened: what was computed before a call that returns OK is
  // right. Costs a system call for each file.
  absl::Status CheckFilesUnchanged() const;
  // Sorted by name.
  const std::vector<CheckpointTensor>& tensors() const { return tensors_; }
  // Null when there is none.
  const CheckpointTensor* Find(std::string_view name) const;
  // What a safetensors file says of itself; of the first shard that has the key. Empty when none has.
  std::string_view Metadata(std::string_view key) const;

  // Advice of who copies weights away, without effect on what is read: `bytes` from `data` on are in use now, and the
  // file goes on being read behind them...
  void ReadAhead(const void* data, int64_t bytes) const;
  // ... and these have been copied: they need not be in memory any more.
  void LetGo(const void* data, int64_t bytes) const;

  // Reads every byte once, or those of the parts that the options name: checks the checksums that the container has
  // (.pth: CRC-32 of each storage, referred to or not) and looks for NaN and infinity. Returns the names of tensors
  // that have such values. A wrong checksum is DATA_LOSS, naming file, storage and a tensor in it.
  absl::StatusOr<std::vector<std::string>> Verify(const VerifyOptions& options) const;

 private:
  struct Shard {
    std::string path;
    CheckpointLayout layout;
  };
  // The index of a shard, and of a part of its layout.
  using Origin = std::pair<int, int>;
  // A tensor as its file has it; quantized ones with their scales.
  struct Stored;

  Checkpoint() = default;
  absl::Status AddShard(std::string_view file, const std::string& path);
  absl::Status AddIndexedShards(const std::string& index_path);
  // Puts quantized matrices together, and sorts tensors; an error if two have one name.
  absl::Status Finish();
  // The mapped part of [data, data + bytes); empty where it is no file's.
  std::string_view MappedPart(const void* data, int64_t bytes) const;
  absl::StatusOr<Stored> ReadQuantized(const Stored& panels, const Stored* scales) const;

  std::string path_;
  int64_t file_bytes_ = 0;
  std::vector<MappedFile> files_;
  std::vector<Shard> shards_;
  std::vector<CheckpointTensor> tensors_;
  // The origins of tensors_, in their order, and those of their scales (equal to the former if there are none).
  std::vector<Origin> origins_, scale_origins_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_H_
