#include "worker/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "kernels/quantize.h"
#include "worker/checkpoint/names.h"
#include "worker/checkpoint/pth.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/scan.h"

namespace goldfinch {
namespace {

constexpr std::string_view kIndexSuffixes[] = {".safetensors.index.json", ".bin.index.json"};
constexpr size_t kIndexBytesMax = 16 << 20;
// Far above what models have: an index may be hostile, and its names take more memory than its text.
constexpr int kIndexTensorsMax = 1 << 17;
constexpr size_t kShardsMax = 1024;
constexpr int64_t kReadAheadBytes = 64 << 20;  // some 20 ms of a fast disk: more than a copy waits for

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<CheckpointLayout> ReadFile(std::string_view file) {
  if (LooksLikePth(file)) return ReadPth(file);
  if (LooksLikeSafetensors(file)) return ReadSafetensors(file);
  return absl::InvalidArgumentError(
      absl::StrCat("is neither .pth nor safetensors: it begins with ", Quoted(file.substr(0, 16))));
}

// The model in a folder.
absl::StatusOr<std::string> ModelIn(const std::filesystem::path& folder) {
  std::error_code error;
  for (const char* name :
       {"model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"}) {
    if (std::filesystem::exists(folder / name, error)) return (folder / name).string();
  }
  std::vector<std::string> models;
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string path = entry->path().string();
    if (path.ends_with(".pth") || path.ends_with(".safetensors")) models.push_back(path);
  }
  if (error) return absl::ErrnoToStatus(error.value(), folder.string());
  if (models.size() == 1) return models[0];
  std::sort(models.begin(), models.end());
  return absl::InvalidArgumentError(
      models.empty() ? absl::StrCat(folder.string(), ": holds no .pth, no .safetensors and no pytorch_model.bin file")
                     : absl::StrCat(folder.string(), ": holds ", models.size(), " models, ", models[0], " and ",
                                    models[1], models.size() > 2 ? " among them" : "", "; name one"));
}

bool IsIndex(std::string_view path) {
  return std::any_of(std::begin(kIndexSuffixes), std::end(kIndexSuffixes),
                     [&](std::string_view suffix) { return path.ends_with(suffix); });
}

// Whether the name is one of a file in the folder it is looked for in, and in no other.
bool IsFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\0", 2)) == name.npos;
}

// Tensor name -> name of the shard's file, from the text of an index.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(std::string_view text) {
  if (text.size() > kIndexBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("has ", text.size(), " bytes; the limit is ", kIndexBytesMax));
  }
  using Event = nlohmann::json::parse_event_t;
  int tensors = 0;
  // Everything else is passed over, so that it takes no memory.
  const auto is_of_weight_map = [&tensors](int depth, Event event, const nlohmann::json& key) {
    if (event == Event::key && depth == 1) return key == "weight_map";
    if (event == Event::key && depth == 2) return ++tensors <= kIndexTensorsMax;
    return depth <= 2 && event != Event::array_start;
  };
  const nlohmann::json index = nlohmann::json::parse(text, is_of_weight_map, /*allow_exceptions=*/false);
  if (index.is_discarded()) return absl::InvalidArgumentError("is not a JSON object");
  if (tensors > kIndexTensorsMax) {
    return absl::InvalidArgumentError(absl::StrCat("names ", tensors, " tensors; the limit is ", kIndexTensorsMax));
  }
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object() || weight_map->empty()) {
    return absl::InvalidArgumentError("has no weight_map");
  }
  std::map<std::string, std::string> shard_of_tensor;
  for (const auto& [tensor, shard] : weight_map->items()) {
    // Shards lie beside their index: a path could lead anywhere.
    if (!shard.is_string() || !IsFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor), " is not in a file beside the index"));
    }
    shard_of_tensor[tensor] = shard.get<std::string>();
  }
  return shard_of_tensor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::string file_path = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    GF_ASSIGN_OR_RETURN(file_path, ModelIn(path));
  }
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->path_ = file_path;
  if (IsIndex(file_path)) {
    GF_RETURN_IF_ERROR(checkpoint->AddIndexedShards(file_path));
  } else {
    GF_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(file_path));
    GF_RETURN_IF_ERROR(checkpoint->AddShard(file.bytes(), file_path));
    checkpoint->files_.push_back(std::move(file));
  }
  GF_RETURN_IF_ERROR(checkpoint->Finish());
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::OpenBytes(std::string_view file, std::string path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->path_ = std::move(path);
  GF_RETURN_IF_ERROR(checkpoint->AddShard(file, checkpoint->path_));
  GF_RETURN_IF_ERROR(checkpoint->Finish());
  return checkpoint;
}

absl::Status Checkpoint::AddShard(std::string_view file, const std::string& path) {
  absl::StatusOr<CheckpointLayout> layout = ReadFile(file);
  if (!layout.ok()) return InFile(path, layout.status());
  file_bytes_ += static_cast<int64_t>(file.size());
  shards_.push_back({path, *std::move(layout)});
  return absl::OkStatus();
}

absl::Status Checkpoint::AddIndexedShards(const std::string& index_path) {
  GF_ASSIGN_OR_RETURN(const MappedFile index, MappedFile::Open(index_path));
  const auto shard_of_tensor = ReadIndex(index.bytes());
  if (!shard_of_tensor.ok()) return InFile(index_path, shard_of_tensor.status());
  std::map<std::string, absl::flat_hash_set<std::string>> tensors_of_shard;
  for (const auto& [tensor, shard] : *shard_of_tensor) tensors_of_shard[shard].insert(tensor);
  if (tensors_of_shard.size() > kShardsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": names ", tensors_of_shard.size(), " files; the limit is ", kShardsMax));
  }

  for (auto& [shard, missing] : tensors_of_shard) {
    const std::string path = (std::filesystem::path(index_path).parent_path() / shard).string();
    GF_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    GF_RETURN_IF_ERROR(AddShard(file.bytes(), path));
    files_.push_back(std::move(file));
    for (const StoredTensor& tensor : shards_.back().layout.tensors) missing.erase(tensor.name);
    if (!missing.empty()) {
      const std::string& first = *std::min_element(missing.begin(), missing.end());
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": has no tensor ", Quoted(first), ", which ", index_path, " says it has"));
    }
  }
  return absl::OkStatus();
}

struct Checkpoint::Stored {
  std::string name;
  int shard = 0;
  const StoredTensor* tensor = nullptr;
  ConstTensor data = {};  // the tensor's, but for quantized ones
  const Stored* scales = nullptr;
  bool by_input = false;
};

absl::StatusOr<Checkpoint::Stored> Checkpoint::ReadQuantized(const Stored& panels, const Stored* scales) const {
  const Shard& shard = shards_[panels.shard];
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(shard.path, ": tensor ", Quoted(panels.name), " ", what...));
  };
  const QuantizedForm* form = nullptr;
  for (const QuantizedForm& known : kQuantizedForms) {
    if (panels.name.ends_with(known.suffix)) form = &known;
  }
  if (form == nullptr) {
    return error("is of bytes, and its name does not end with .q8, .q4, .q8t or .q4t: not a quantized matrix");
  }
  const auto version = shard.layout.metadata.find(std::string(kQuantizedVersionKey));
  if (version == shard.layout.metadata.end())
    return error("is of bytes, and the file names no version of their layout");
  if (version->second != kQuantizedVersion) {
    return error("is quantized in version ", Quoted(version->second), "; readable is ", std::string(kQuantizedVersion));
  }
  const DType dtype = form->dtype;
  const Shape& shape = panels.data.shape;
  int64_t out = 0, in = 0;
  if (form->by_input && shape.rank() == 3) {
    in = shape[1];
    out = shape[0] * (dtype == DType::kInt8 ? shape[2] : shape[2] * 2);
    if (!CanQuantizeByInput(out, in)) out = 0;
  } else if (!form->by_input && shape.rank() == 4) {
    out = shape[0] * kPanelOut;
    in = dtype == DType::kInt8 ? shape[1] * 4 : shape[1] * 8;
    if (!CanQuantize(out, in)) out = 0;
  }
  const auto layout = form->by_input ? QuantizedRows : QuantizedPanels;
  if (out == 0 || !(layout(dtype, out, in).shape == shape)) {
    const char* step = dtype == DType::kInt8 ? "4" : "8";
    return form->by_input
               ? error("is ", shape.ToString(), ", expected [out / B, in, ", dtype == DType::kInt8 ? "B" : "B / 2",
                       "] for inputs in multiples of ", kGroupIn, " and outputs of ", 2 * kStripOut)
               : error("is ", shape.ToString(), ", expected [out / 16, in / ", step,
                       ", 16, 4] for inputs in multiples of ", kGroupIn);
  }
  if (scales == nullptr) return error("has no scales beside it");
  const ConstTensor expected = (form->by_input ? QuantizedRowScales : QuantizedScales)(dtype, out, in);
  if (scales->data.dtype != expected.dtype || !(scales->data.shape == expected.shape)) {
    return error("has scales of ", Name(scales->data.dtype), " ", scales->data.shape.ToString(), ", expected ",
                 Name(expected.dtype), " ", expected.shape.ToString());
  }
  Stored matrix = panels;
  matrix.name.resize(matrix.name.size() - form->suffix.size());
  matrix.by_input = form->by_input;
  matrix.data = {panels.data.data, dtype, {out, in}};
  matrix.scales = scales;
  return matrix;
}

absl::Status Checkpoint::Finish() {
  const auto by_name = [](const Stored& a, const Stored& b) {
    return std::tie(a.name, a.shard, a.tensor->name) < std::tie(b.name, b.shard, b.tensor->name);
  };
  std::vector<Stored> stored;
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (const StoredTensor& tensor : shards_[shard].layout.tensors) {
      stored.push_back({CanonicalName(tensor.name), static_cast<int>(shard), &tensor, tensor.data});
    }
  }
  std::sort(stored.begin(), stored.end(), by_name);

  std::vector<Stored> all;
  absl::flat_hash_set<const Stored*> taken;  // scales that are part of a matrix
  for (const Stored& panels : stored) {
    if (panels.data.dtype != DType::kU8) continue;
    const std::string name = absl::StrCat(panels.name.substr(0, panels.name.rfind('.')), std::string(kScalesSuffix));
    const auto scales = std::lower_bound(stored.begin(), stored.end(), name,
                                         [](const Stored& a, const std::string& name) { return a.name < name; });
    const bool found = scales != stored.end() && scales->name == name;
    GF_ASSIGN_OR_RETURN(all.emplace_back(), ReadQuantized(panels, found ? &*scales : nullptr));
    taken.insert(all.back().scales);
  }
  for (const Stored& tensor : stored) {
    if (tensor.data.dtype != DType::kU8 && !taken.contains(&tensor)) all.push_back(tensor);
  }
  std::sort(all.begin(), all.end(), by_name);
  for (size_t i = 0; i < all.size(); ++i) {
    if (i > 0 && all[i].name == tensors_.back().name) {
      return absl::InvalidArgumentError(
          absl::StrCat(shards_[all[i].shard].path, ": tensor ", Quoted(all[i].tensor->name), " is the same as ",
                       Quoted(all[i - 1].tensor->name), " of ", shards_[all[i - 1].shard].path));
    }
    const Stored* scales = all[i].scales;
    origins_.push_back({all[i].shard, all[i].tensor->part});
    scale_origins_.push_back(scales == nullptr ? origins_.back() : Origin{scales->shard, scales->tensor->part});
    tensors_.push_back(
        {std::move(all[i].name), all[i].data, scales == nullptr ? ConstTensor{} : scales->data, all[i].by_input});
  }
  return absl::OkStatus();
}

std::string_view Checkpoint::Metadata(std::string_view key) const {
  for (const Shard& shard : shards_) {
    const auto found = shard.layout.metadata.find(std::string(key));
    if (found != shard.layout.metadata.end()) return found->second;
  }
  return {};
}

std::string_view Checkpoint::MappedPart(const void* data, int64_t bytes) const {
  const char* const begin = static_cast<const char*>(data);
  for (const MappedFile& file : files_) {
    const char* const end = file.bytes().data() + file.bytes().size();
    if (std::less_equal<>()(file.bytes().data(), begin) && std::less<>()(begin, end)) {
      return {begin, static_cast<size_t>(std::min<int64_t>(bytes, end - begin))};
    }
  }
  return {};
}

void Checkpoint::ReadAhead(const void* data, int64_t bytes) const {
  const std::string_view part = MappedPart(data, bytes + kReadAheadBytes);
  if (!part.empty()) MappedFile::WillNeed(part);
}

void Checkpoint::LetGo(const void* data, int64_t bytes) const {
  const std::string_view part = MappedPart(data, bytes);
  if (!part.empty()) MappedFile::DontNeed(part);
}

absl::Status Checkpoint::CheckFilesUnchanged() const {
  for (const MappedFile& file : files_) GF_RETURN_IF_ERROR(file.CheckUnchanged());
  return absl::OkStatus();
}

int64_t Checkpoint::owned_bytes() const {
  int64_t bytes = 0;
  for (const Shard& shard : shards_) bytes += shard.layout.owned_bytes;
  return bytes;
}

const CheckpointTensor* Checkpoint::Find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const CheckpointTensor& tensor, std::string_view name) { return tensor.name < name; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::StatusOr<std::vector<std::string>> Checkpoint::Verify(const VerifyOptions& options) const {
  absl::flat_hash_set<Origin> wanted;
  for (size_t i = 0; i < tensors_.size() && options.tensors; ++i) {
    if (options.tensors(tensors_[i].name)) wanted.insert({origins_[i], scale_origins_[i]});
  }
  std::vector<const FilePart*> parts;
  std::vector<Origin> part_origins;
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (size_t part = 0; part < shards_[shard].layout.parts.size(); ++part) {
      const Origin origin = {static_cast<int>(shard), static_cast<int>(part)};
      if (options.tensors && !wanted.contains(origin)) continue;
      parts.push_back(&shards_[shard].layout.parts[part]);
      part_origins.push_back(origin);
    }
  }
  const std::vector<PartScan> scans = ScanParts(parts, options.checksums, options.threads, options.progress);

  absl::flat_hash_set<Origin> suspects;  // parts with non-finite elements, maybe outside of any tensor
  for (size_t i = 0; i < parts.size(); ++i) {
    const FilePart& part = *parts[i];
    if (options.checksums && part.crc32 && scans[i].crc32 != *part.crc32) {
      const auto origin = std::find(origins_.begin(), origins_.end(), part_origins[i]);
      const std::string tensor = origin == origins_.end()
                                     ? "no tensor"
                                     : absl::StrCat("tensor ", Quoted(tensors_[origin - origins_.begin()].name));
      return absl::DataLossError(absl::StrFormat("%s: %s (%s) is damaged: its CRC-32 is %08x and should be %08x",
                                                 shards_[part_origins[i].first].path, Quoted(part.name), tensor,
                                                 scans[i].crc32, *part.crc32));
    }
    if (scans[i].non_finite) suspects.insert(part_origins[i]);
  }
  std::vector<std::string> non_finite;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    // In quantized weights only the scales can be NaN or infinite.
    const ConstTensor& data = tensors_[i].scales ? tensors_[i].scales : tensors_[i].data;
    const std::string_view bytes(static_cast<const char*>(data.data), data.bytes());
    if (suspects.contains(scale_origins_[i]) && HasNonFinite(bytes, data.dtype)) non_finite.push_back(tensors_[i].name);
  }
  return non_finite;
}

}  // namespace goldfinch
