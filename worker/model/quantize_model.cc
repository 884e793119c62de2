#include "worker/model/quantize_model.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/quantize.h"
#include "worker/checkpoint/fingerprint.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {
namespace {

constexpr int64_t kAlignment = 64;  // of tensors whose size allows it: a line of the processor's cache

const char* SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBf16:
      return "BF16";
    default:
      GF_CHECK(dtype == DType::kU8) << Name(dtype);
      return "U8";
  }
}

// A tensor of the file to write.
struct Entry {
  std::string name;
  ConstTensor data;  // null: made when its turn comes
  int64_t offset = 0;
};

// A file that has its name only once it is whole.
class PartialFile {
 public:
  static absl::StatusOr<PartialFile> Create(const std::string& path) {
    PartialFile file(path);
    file.descriptor_ = open(file.partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file.descriptor_ < 0) return absl::ErrnoToStatus(errno, file.partial_);
    return file;
  }
  PartialFile(PartialFile&& other) noexcept
      : path_(other.path_), partial_(other.partial_), descriptor_(std::exchange(other.descriptor_, -1)) {}
  PartialFile& operator=(PartialFile&&) = delete;
  ~PartialFile() {
    if (descriptor_ < 0) return;
    close(descriptor_);
    unlink(partial_.c_str());
  }

  absl::Status Write(int64_t offset, const void* data, int64_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = pwrite(descriptor_, from, bytes, offset);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return absl::ErrnoToStatus(errno, partial_);
      from += written;
      offset += written;
      bytes -= written;
    }
    return absl::OkStatus();
  }

  absl::Status Finish() {
    const bool closed = close(std::exchange(descriptor_, -1)) == 0;
    if (closed && std::rename(partial_.c_str(), path_.c_str()) == 0) return absl::OkStatus();
    const int error = errno;
    unlink(partial_.c_str());
    return absl::ErrnoToStatus(error, path_);
  }

 private:
  explicit PartialFile(const std::string& path) : path_(path), partial_(path + ".partial") {}

  const std::string path_;
  const std::string partial_;
  int descriptor_ = -1;
};

// Calls body(i) for every i in [0, count), on several threads.
template <class Body>
void ForEach(int64_t count, int threads, const Body& body) {
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) body(i);
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

// The inputs of these are squares of what is positive: many are zero, and are not read where they lie by inputs.
bool HasSparseInputs(std::string_view name) { return name.ends_with(".ffn.value.weight"); }

struct Quantized {
  std::vector<uint8_t> panels;  // or rows
  std::vector<char> scales;
};

// False if a weight is not finite.
bool QuantizeMatrix(const ConstTensor& matrix, const QuantizedForm& form, int threads, Quantized* result) {
  const DType dtype = form.dtype;
  const int64_t out = matrix.dim(0), in = matrix.dim(1), panels = out / kPanelOut;
  result->panels.resize(QuantizedPanels(dtype, out, in).bytes());
  result->scales.resize(QuantizedScales(dtype, out, in).bytes());
  const int64_t panel_bytes = static_cast<int64_t>(result->panels.size()) / panels;
  const int64_t scale_bytes = static_cast<int64_t>(result->scales.size()) / panels;
  const int64_t source_bytes = matrix.bytes() / panels;
  std::atomic<bool> finite = true;
  ForEach(panels, threads, [&](int64_t panel) {
    const std::vector<float> weights =
        ToFloats({static_cast<const char*>(matrix.data) + panel * source_bytes, matrix.dtype, {kPanelOut, in}});
    if (!std::all_of(weights.begin(), weights.end(), [](float weight) { return std::isfinite(weight); })) {
      finite = false;
      return;
    }
    QuantizePanel(weights.data(), in, dtype, result->panels.data() + panel * panel_bytes,
                  result->scales.data() + panel * scale_bytes);
  });
  if (finite && form.by_input) {
    Quantized rows{std::vector<uint8_t>(result->panels.size()), std::vector<char>(result->scales.size())};
    ArrangeByInput(dtype, out, in, result->panels.data(), result->scales.data(), rows.panels.data(),
                   rows.scales.data());
    *result = std::move(rows);
  }
  return finite;
}

// The header, padded so that the data behind it is aligned. Gives entries their offsets.
std::string LayOut(const nlohmann::json& metadata, std::vector<Entry*> entries) {
  // No holes are allowed, so what keeps the next tensor aligned goes first.
  std::sort(entries.begin(), entries.end(), [](const Entry* a, const Entry* b) {
    const auto key = [](const Entry& entry) {
      return std::tuple(entry.data.bytes() % kAlignment != 0, -SizeOf(entry.data.dtype), entry.name);
    };
    return key(*a) < key(*b);
  });
  nlohmann::json header = {{"__metadata__", metadata}};
  int64_t end = 0;
  for (Entry* entry : entries) {
    nlohmann::json& json = header[entry->name];
    json["dtype"] = SafetensorsName(entry->data.dtype);
    for (int axis = 0; axis < entry->data.shape.rank(); ++axis) json["shape"].push_back(entry->data.dim(axis));
    entry->offset = end;
    end += entry->data.bytes();
    json["data_offsets"] = {entry->offset, end};
  }
  std::string text = header.dump();
  text.append((kAlignment - (text.size() + 8) % kAlignment) % kAlignment, ' ');
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(text.size() >> (8 * i) & 0xFF));
  bytes += text;
  for (Entry* entry : entries) entry->offset += static_cast<int64_t>(bytes.size());
  return bytes;
}

}  // namespace

bool IsLargeMatrix(const CheckpointTensor& tensor) {
  const std::string& name = tensor.name;
  if (tensor.data.shape.rank() != 2 || !name.ends_with(".weight")) return false;
  const bool in_mixer = name.starts_with("blocks.") &&
                        (name.find(".att.") != std::string::npos || name.find(".ffn.") != std::string::npos);
  return in_mixer || name == "head.weight";
}

absl::StatusOr<QuantizeReport> QuantizeModel(const Checkpoint& checkpoint, const std::string& path,
                                             const QuantizeOptions& options) {
  GF_CHECK(IsQuantized(options.dtype)) << Name(options.dtype);
  const auto invalid = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": ", what...));
  };
  std::error_code error;
  if (!options.overwrite && std::filesystem::exists(path, error)) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": exists already"));
  }

  QuantizeReport report;
  struct Planned {
    const CheckpointTensor* source;
    Entry data, scales;  // of a tensor that is not quantized only the first
    const QuantizedForm* form = nullptr;
  };
  std::vector<Planned> plan;
  plan.reserve(checkpoint.tensors().size());
  std::vector<bool> used(options.keep.size(), false);
  int64_t all_bytes = 0;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (tensor.scales) return invalid("tensor ", tensor.name, " is quantized already, to ", Name(tensor.data.dtype));
    all_bytes += tensor.bytes();
    Planned& planned = plan.emplace_back(Planned{&tensor, {tensor.name, tensor.data}, {}});
    if (!IsLargeMatrix(tensor)) continue;
    bool keep = false;
    for (size_t i = 0; i < options.keep.size(); ++i) {
      if (fnmatch(options.keep[i].c_str(), tensor.name.c_str(), 0) != 0) continue;
      keep = used[i] = true;
    }
    const int64_t out = tensor.data.dim(0), in = tensor.data.dim(1);
    if (keep) {
      report.kept.push_back(tensor.name);
    } else if (!CanQuantize(out, in)) {
      report.unfit.push_back(absl::StrCat(tensor.name, " ", tensor.data.shape.ToString()));
    } else {
      const bool by_input = HasSparseInputs(tensor.name) && CanQuantizeByInput(out, in);
      for (const QuantizedForm& form : kQuantizedForms) {
        if (form.dtype == options.dtype && form.by_input == by_input) planned.form = &form;
      }
      const auto layout = by_input ? QuantizedRows : QuantizedPanels;
      const auto scales = by_input ? QuantizedRowScales : QuantizedScales;
      planned.data = {tensor.name + std::string(planned.form->suffix), layout(options.dtype, out, in)};
      planned.scales = {tensor.name + std::string(kScalesSuffix), scales(options.dtype, out, in)};
      ++report.matrices;
    }
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) return invalid("no matrix of it has a name like ", options.keep[i]);
  }
  if (report.matrices == 0) return invalid("has no matrix to quantize");

  std::vector<Entry*> entries;
  for (Planned& planned : plan) {
    entries.push_back(&planned.data);
    if (planned.form != nullptr) entries.push_back(&planned.scales);
  }
  const std::string header = LayOut({{"format", "goldfinch"},
                                     {std::string(kQuantizedVersionKey), std::string(kQuantizedVersion)},
                                     {std::string(kQuantizedSourceKey), Fingerprint(checkpoint)}},
                                    entries);
  GF_ASSIGN_OR_RETURN(PartialFile file, PartialFile::Create(path));
  GF_RETURN_IF_ERROR(file.Write(0, header.data(), static_cast<int64_t>(header.size())));
  report.bytes = static_cast<int64_t>(header.size());
  int64_t done_bytes = 0;
  Quantized quantized;
  for (const Planned& planned : plan) {
    const ConstTensor& source = planned.source->data;
    if (planned.form == nullptr) {
      GF_RETURN_IF_ERROR(file.Write(planned.data.offset, source.data, source.bytes()));
    } else {
      if (!QuantizeMatrix(source, *planned.form, options.threads, &quantized)) {
        return invalid("tensor ", planned.source->name, " has values that are NaN or infinite");
      }
      GF_RETURN_IF_ERROR(file.Write(planned.data.offset, quantized.panels.data(), planned.data.data.bytes()));
      GF_RETURN_IF_ERROR(file.Write(planned.scales.offset, quantized.scales.data(), planned.scales.data.bytes()));
    }
    report.bytes += planned.data.data.bytes() + planned.scales.data.bytes();
    done_bytes += source.bytes();
    if (options.progress) options.progress(done_bytes, all_bytes);
  }
  GF_RETURN_IF_ERROR(file.Finish());
  return report;
}

}  // namespace goldfinch
