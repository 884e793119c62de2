#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "worker/checkpoint/names.h"

namespace goldfinch {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;

std::optional<DType> DTypeOf(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBf16;
  if (name == "U8") return DType::kU8;  // of quantized matrices
  return std::nullopt;
}

// A tensor as the header describes it; offsets count from the end of the header.
struct Entry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> data_offsets;
  bool has_shape = false;
};

// Takes in the header as it is parsed, exactly in its two levels: no tree of a hostile header is ever built.
class HeaderHandler : public json::json_sax_t {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  absl::Status status;

  bool start_object(size_t) override {
    if (++depth_ == 1) return true;
    return depth_ == 2 && !field_ ? true : Fail("has an object where none belongs");
  }

  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      const Entry& entry = entries.back();
      if (entry.dtype.empty() || !entry.has_shape || entry.data_offsets.size() != 2) {
        return Fail("needs dtype, shape and two data_offsets");
      }
    }
    --depth_;
    field_ = nullptr;
    in_metadata_ = false;
    return true;
  }

  bool key(std::string& name) override {
    if (depth_ == 1) {
      if (!names_.insert(name).second) return Fail(Quoted(name), " is there twice");
      in_metadata_ = name == "__metadata__";
      if (in_metadata_) return true;
      if (name.empty()) return Fail("has a tensor without a name");
      entries.emplace_back().name = name;
      return true;
    }
    if (in_metadata_) {
      metadata_key_ = name;
      return true;
    }
    const Entry& entry = entries.back();
    if (name == "dtype" && entry.dtype.empty()) {
      field_ = kDType;
    } else if (name == "shape" && !entry.has_shape) {
      field_ = kShape;
    } else if (name == "data_offsets" && entry.data_offsets.empty()) {
      field_ = kDataOffsets;
    } else {
      return Fail("has ", Quoted(name), " twice or as an unknown field");
    }
    return true;
  }

  bool string(std::string& value) override {
    if (in_metadata_ && depth_ == 2) {
      metadata[metadata_key_] = value;
      return true;
    }
    if (field_ != kDType) return Fail("has a string where none belongs");
    entries.back().dtype = value;
    field_ = nullptr;
    return true;
  }

  bool start_array(size_t) override {
    if (in_array_ || (field_ != kShape && field_ != kDataOffsets)) return Fail("has an array where none belongs");
    in_array_ = true;
    if (field_ == kShape) entries.back().has_shape = true;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (!in_array_) return Fail("has a number where none belongs");
    std::vector<uint64_t>& numbers = field_ == kShape ? entries.back().shape : entries.back().data_offsets;
    if (numbers.size() == 4) return Fail("has more than 4 numbers in its ", field_, "; the limit is 4");
    numbers.push_back(value);
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    field_ = nullptr;
    return true;
  }

  bool null() override { return Fail("has a null where none belongs"); }
  bool boolean(bool) override { return Fail("has a boolean where none belongs"); }
  bool number_integer(int64_t value) override { return Fail("has a negative number, ", value); }
  bool number_float(double, const std::string& text) override { return Fail("has ", Quoted(text), ", not an integer"); }
  bool binary(json::binary_t&) override { return Fail("has a binary where none belongs"); }
  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    status = absl::InvalidArgumentError(absl::StrCat("the header is not valid JSON (at its byte ", position, ")"));
    return false;
  }

 private:
  static constexpr char kDType[] = "dtype";
  static constexpr char kShape[] = "shape";
  static constexpr char kDataOffsets[] = "data_offsets";

  template <typename... What>
  bool Fail(const What&... what) {
    const bool in_tensor = depth_ >= 2 && !in_metadata_ && !entries.empty();
    const std::string where = in_tensor ? absl::StrCat("tensor ", Quoted(entries.back().name)) : "the header";
    status = absl::InvalidArgumentError(absl::StrCat(where, " ", what...));
    return false;
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  std::string metadata_key_;
  bool in_array_ = false;
  const char* field_ = nullptr;  // of the tensor's fields the one whose value comes next
  absl::flat_hash_set<std::string> names_;
};

absl::Status CheckOffsets(const std::vector<Entry>& entries, size_t data_bytes) {
  std::vector<const Entry*> ordered;
  ordered.reserve(entries.size());
  for (const Entry& entry : entries) ordered.push_back(&entry);
  std::sort(ordered.begin(), ordered.end(),
            [](const Entry* a, const Entry* b) { return a->data_offsets < b->data_offsets; });
  uint64_t end = 0;
  for (const Entry* entry : ordered) {
    const uint64_t from = entry->data_offsets[0];
    const uint64_t to = entry->data_offsets[1];
    const auto error = [&](const auto&... what) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(entry->name), " has data_offsets [", from, ", ", to, "], ", what...));
    };
    if (from > to) return error("which run backwards");
    if (to > data_bytes) return error("but the file's data ends at ", data_bytes, " (cut short?)");
    if (from < end) return error("which overlap the tensor that ends at ", end);
    if (from > end) return error("but nothing fills the bytes from ", end, " on");
    end = to;
  }
  if (end != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file's data has ", data_bytes, " bytes, of which no tensor has those from ", end, " on"));
  }
  return absl::OkStatus();
}

}  // namespace

bool LooksLikeSafetensors(std::string_view file) { return file.size() > kLengthBytes && file[kLengthBytes] == '{'; }

absl::StatusOr<CheckpointLayout> ReadSafetensors(std::string_view file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("is cut short: ", file.size(), " bytes"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_bytes |= uint64_t{static_cast<uint8_t>(file[i])} << (8 * i);
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("has a header of ", header_bytes, " bytes; the limit is ", kSafetensorsHeaderBytesMax));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("is cut short: its header has ", header_bytes, " bytes, the whole file ", file.size()));
  }
  const std::string_view header = file.substr(kLengthBytes, header_bytes);
  const std::string_view data = file.substr(kLengthBytes + header_bytes);

  HeaderHandler handler;
  if (!LooksLikeSafetensors(file)) return absl::InvalidArgumentError("its header is not a JSON object");
  if (!json::sax_parse(header.begin(), header.end(), &handler)) return handler.status;
  if (handler.entries.empty()) return absl::InvalidArgumentError("holds no tensor");
  GF_RETURN_IF_ERROR(CheckOffsets(handler.entries, data.size()));

  CheckpointLayout layout;
  layout.metadata = std::move(handler.metadata);
  for (const Entry& entry : handler.entries) {
    const auto error = [&](const auto&... what) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(entry.name), " ", what...));
    };
    const std::optional<DType> dtype = DTypeOf(entry.dtype);
    if (!dtype) return error("has dtype ", Quoted(entry.dtype), "; readable are F32, F16, BF16 and U8");
    const std::string_view bytes = data.substr(entry.data_offsets[0], entry.data_offsets[1] - entry.data_offsets[0]);
    StoredView view;
    view.rank = static_cast<int>(entry.shape.size());
    // Numbers beyond int64 become negative, which ElementsOf refuses.
    std::copy(entry.shape.begin(), entry.shape.end(), view.sizes.begin());
    const std::optional<int64_t> elements = ElementsOf(view);
    if (!elements) return error("has a shape that overflows");
    if (*elements != static_cast<int64_t>(bytes.size()) / SizeOf(*dtype) || bytes.size() % SizeOf(*dtype) != 0) {
      return error("has ", bytes.size(), " bytes, but its shape has ", *elements, " elements of ", SizeOf(*dtype),
                   " bytes");
    }
    SetDenseStrides(&view);
    layout.parts.push_back({entry.name, bytes, dtype, std::nullopt});
    GF_RETURN_IF_ERROR(layout.AddTensor(entry.name, static_cast<int>(layout.parts.size()) - 1, view,
                                        static_cast<int64_t>(file.size())));
  }
  return layout;
}

}  // namespace goldfinch
