#include "base/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"

namespace goldfinch {
namespace {

using nlohmann::json;

// Takes in the header as it is parsed, exactly in its two levels: no tree of a hostile header is ever built.
class HeaderHandler : public json::json_sax_t {
 public:
  SafetensorsHeader header;
  absl::Status status;

  bool start_object(size_t) override {
    if (++depth_ == 1) return true;
    return depth_ == 2 && !field_ ? true : Unexpected("an object");
  }

  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      const SafetensorsEntry& entry = header.entries.back();
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
      name_ = name;
      if (!names_.insert(name).second) return Fail("has ", Quoted(name), " twice");
      in_metadata_ = name == "__metadata__";
      if (in_metadata_) return true;
      if (name.empty()) return Fail("has a tensor without a name");
      header.entries.emplace_back().name = name;
      return true;
    }
    if (in_metadata_) {
      metadata_key_ = name;
      return true;
    }
    const SafetensorsEntry& entry = header.entries.back();
    if (name == "dtype" && entry.dtype.empty()) {
      field_ = kDType;
    } else if (name == "shape" && !entry.has_shape) {
      field_ = kShape;
    } else if (name == "data_offsets" && entry.data_offsets.empty()) {
      field_ = kDataOffsets;
    } else {
      return Fail("has an unknown or repeated field ", Quoted(name));
    }
    return true;
  }

  bool string(std::string& value) override {
    if (in_metadata_ && depth_ == 2) {
      header.metadata[metadata_key_] = value;
      return true;
    }
    if (field_ != kDType) return Unexpected("a string");
    header.entries.back().dtype = value;
    field_ = nullptr;
    return true;
  }

  bool start_array(size_t) override {
    if (in_array_ || (field_ != kShape && field_ != kDataOffsets)) return Unexpected("an array");
    in_array_ = true;
    if (field_ == kShape) header.entries.back().has_shape = true;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (!in_array_) return Unexpected("a number");
    std::vector<uint64_t>& numbers =
        field_ == kShape ? header.entries.back().shape : header.entries.back().data_offsets;
    if (numbers.size() == 4) return Fail("has more than 4 numbers in its ", field_, "; the limit is 4");
    numbers.push_back(value);
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    field_ = nullptr;
    return true;
  }

  bool null() override { return Unexpected("a null value"); }
  bool boolean(bool) override { return Unexpected("a boolean value"); }
  bool number_integer(int64_t value) override { return Fail("has a negative number, ", value); }
  bool number_float(double, const std::string& text) override { return Fail("has ", Quoted(text), ", not an integer"); }
  bool binary(json::binary_t&) override { return Unexpected("a binary value"); }
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
    const bool in_tensor = depth_ >= 2 && !in_metadata_ && !header.entries.empty();
    const std::string where = in_tensor ? absl::StrCat("tensor ", Quoted(header.entries.back().name)) : "the header";
    status = absl::InvalidArgumentError(absl::StrCat(where, " ", what...));
    return false;
  }

  // Where the value stands, and what belongs there instead.
  bool Unexpected(const char* what) {
    if (in_metadata_ && depth_ >= 2) return Fail("has ", what, " at ", Quoted(metadata_key_), ", expected a string");
    if (field_ == nullptr) return Fail("has ", what, " at ", Quoted(name_), ", expected an object");
    const char* const expected = field_ == kDType ? "a string" : in_array_ ? "an integer" : "an array";
    return Fail("has ", what, " at ", field_, ", expected ", expected);
  }

  int depth_ = 0;
  std::string name_;  // of the tensor, or __metadata__
  bool in_metadata_ = false;
  std::string metadata_key_;
  bool in_array_ = false;
  const char* field_ = nullptr;  // of the tensor's fields the one whose value comes next
  absl::flat_hash_set<std::string> names_;
};

// Checks that the tensors fill the data from its beginning on, and returns its bytes.
absl::StatusOr<uint64_t> CheckOffsets(const std::vector<SafetensorsEntry>& entries,
                                      std::optional<uint64_t> data_bytes) {
  std::vector<const SafetensorsEntry*> ordered;
  ordered.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) ordered.push_back(&entry);
  std::sort(ordered.begin(), ordered.end(),
            [](const SafetensorsEntry* a, const SafetensorsEntry* b) { return a->data_offsets < b->data_offsets; });
  uint64_t end = 0;
  for (const SafetensorsEntry* entry : ordered) {
    const uint64_t from = entry->data_offsets[0];
    const uint64_t to = entry->data_offsets[1];
    const auto error = [&](const auto&... what) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(entry->name), " has data_offsets [", from, ", ", to, "], ", what...));
    };
    if (from > to) return error("which run backwards");
    if (data_bytes && to > *data_bytes) return error("but the file's data ends at ", *data_bytes, " (cut short?)");
    if (from < end) return error("which overlap the tensor that ends at ", end);
    if (from > end) return error("but nothing fills the bytes from ", end, " on");
    end = to;
  }
  if (data_bytes && end != *data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file's data has ", *data_bytes, " bytes, of which no tensor has those from ", end, " on"));
  }
  return end;
}

}  // namespace

absl::StatusOr<size_t> SafetensorsHeaderBytes(std::string_view first, int64_t bytes_max) {
  if (first.size() < kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("is cut short: ", first.size(), " bytes"));
  }
  uint64_t bytes = 0;
  for (size_t i = 0; i < kSafetensorsLengthBytes; ++i) bytes |= uint64_t{static_cast<uint8_t>(first[i])} << (8 * i);
  if (bytes > static_cast<uint64_t>(bytes_max)) {
    return absl::InvalidArgumentError(absl::StrCat("has a header of ", bytes, " bytes; the limit is ", bytes_max));
  }
  return bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text, std::optional<uint64_t> data_bytes) {
  HeaderHandler handler;
  if (!text.starts_with('{')) return absl::InvalidArgumentError("its header is not a JSON object");
  if (!json::sax_parse(text.begin(), text.end(), &handler)) return handler.status;
  if (handler.header.entries.empty()) return absl::InvalidArgumentError("holds no tensor");
  GF_ASSIGN_OR_RETURN(handler.header.data_bytes, CheckOffsets(handler.header.entries, data_bytes));
  return std::move(handler.header);
}

}  // namespace goldfinch
