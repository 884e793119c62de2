#include "base/npy.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/status.h"

namespace goldfinch {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr int64_t kMaxHeaderBytes = 1 << 16;

struct Header {
  std::string type;  // "<i4"
  std::vector<int64_t> shape;
  int64_t elements = 0;
  int64_t element_bytes = 0;
};

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// The text after `'key':` in the header's Python dict.
absl::StatusOr<std::string> Field(const std::string& path, const std::string& dict, const char* key) {
  const size_t at = dict.find(absl::StrCat("'", key, "':"));
  if (at == std::string::npos) return Bad(path, absl::StrCat("the .npy header has no ", key));
  std::string rest = dict.substr(at + std::strlen(key) + 3);
  return std::string(absl::StripLeadingAsciiWhitespace(rest));
}

absl::StatusOr<Header> ParseHeader(const std::string& path, const std::string& dict, int64_t data_bytes) {
  Header header;
  GF_ASSIGN_OR_RETURN(const std::string descr, Field(path, dict, "descr"));
  const size_t quote = descr.find('\'', 1);
  if (descr.empty() || descr[0] != '\'' || quote == std::string::npos)
    return Bad(path, "the .npy header's descr is no type");
  header.type = descr.substr(1, quote - 1);
  GF_ASSIGN_OR_RETURN(const std::string order, Field(path, dict, "fortran_order"));
  if (!order.starts_with("False")) return Bad(path, "the array is in Fortran order; save it in C order");
  GF_ASSIGN_OR_RETURN(const std::string shape, Field(path, dict, "shape"));
  const size_t close = shape.find(')');
  if (shape.empty() || shape[0] != '(' || close == std::string::npos)
    return Bad(path, "the .npy header's shape is no tuple");
  header.elements = 1;
  const std::vector<std::string> dims = absl::StrSplit(shape.substr(1, close - 1), ',', absl::SkipWhitespace());
  for (const std::string& dim : dims) {
    int64_t size = 0;
    if (!absl::SimpleAtoi(dim, &size) || size < 0 || __builtin_mul_overflow(header.elements, size, &header.elements)) {
      return Bad(path, absl::StrCat("the .npy header's shape has an axis of ", absl::StripAsciiWhitespace(dim)));
    }
    header.shape.push_back(size);
  }
  const std::string digits = header.type.size() == 3 ? header.type.substr(2) : "";
  if (!absl::SimpleAtoi(digits, &header.element_bytes) || header.element_bytes < 1) {
    return Bad(path, absl::StrCat("arrays of type ", header.type, " are not read"));
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(header.elements, header.element_bytes, &bytes) || bytes != data_bytes) {
    return Bad(path, absl::StrCat("the header promises ", header.elements, " elements of ", header.element_bytes,
                                  " bytes, the file has ", data_bytes, " bytes of data"));
  }
  return header;
}

// Reads the header and the raw data.
absl::StatusOr<Header> ReadNpy(const std::string& path, int64_t limit, std::string* data) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  std::error_code error;
  const auto file_bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return Bad(path, "not a regular file");
  unsigned char start[12] = {};
  file.read(reinterpret_cast<char*>(start), sizeof(start));
  if (file.gcount() != sizeof(start) || std::memcmp(start, kMagic, 6) != 0) return Bad(path, "not a .npy file");
  if (start[6] < 1 || start[6] > 3) return Bad(path, absl::StrCat(".npy version ", start[6], " is not known"));
  int64_t header_bytes = start[8] | start[9] << 8;
  int64_t header_begin = 10;
  if (start[6] > 1) {
    header_bytes |= static_cast<int64_t>(start[10]) << 16 | static_cast<int64_t>(start[11]) << 24;
    header_begin = 12;
  }
  if (header_bytes > kMaxHeaderBytes || header_begin + header_bytes > file_bytes) {
    return Bad(path, absl::StrCat("the .npy header is ", header_bytes, " bytes long in a file of ", file_bytes));
  }
  std::string dict(header_bytes, '\0');
  file.seekg(header_begin);
  file.read(dict.data(), header_bytes);
  const int64_t data_bytes = file_bytes - header_begin - header_bytes;
  GF_ASSIGN_OR_RETURN(Header header, ParseHeader(path, dict, data_bytes));
  if (header.elements > limit) {
    return Bad(path, absl::StrCat("has ", header.elements, " elements, the limit is ", limit));
  }
  data->resize(data_bytes);
  file.read(data->data(), data_bytes);
  if (file.gcount() != data_bytes) return Bad(path, "the file ends early");
  return header;
}

template <typename T>
absl::Status CopyInts(const std::string& path, const std::string& data, std::vector<int32_t>* values) {
  for (size_t i = 0; i * sizeof(T) < data.size(); ++i) {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    if (!std::in_range<int32_t>(value)) {
      return Bad(path,
                 absl::StrCat("element ", i, " is ", value, ", the limit is ", std::numeric_limits<int32_t>::max()));
    }
    values->push_back(static_cast<int32_t>(value));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<NpyArray<int32_t>> ReadNpyInts(const std::string& path, int64_t limit) {
  std::string data;
  GF_ASSIGN_OR_RETURN(Header header, ReadNpy(path, limit, &data));
  NpyArray<int32_t> array{std::move(header.shape), {}};
  array.values.reserve(header.elements);
  const std::string& type = header.type;
  absl::Status status = Bad(path, absl::StrCat("elements are ", type, ", expected integers"));
  if (type == "|i1") status = CopyInts<int8_t>(path, data, &array.values);
  if (type == "|u1") status = CopyInts<uint8_t>(path, data, &array.values);
  if (type == "<u2") status = CopyInts<uint16_t>(path, data, &array.values);
  if (type == "<i2") status = CopyInts<int16_t>(path, data, &array.values);
  if (type == "<u4") status = CopyInts<uint32_t>(path, data, &array.values);
  if (type == "<i4") status = CopyInts<int32_t>(path, data, &array.values);
  if (type == "<i8") status = CopyInts<int64_t>(path, data, &array.values);
  if (type == "<u8") status = CopyInts<uint64_t>(path, data, &array.values);
  GF_RETURN_IF_ERROR(status);
  return array;
}

absl::StatusOr<NpyArray<float>> ReadNpyFloats(const std::string& path, int64_t limit) {
  std::string data;
  GF_ASSIGN_OR_RETURN(Header header, ReadNpy(path, limit, &data));
  if (header.type != "<f4") return Bad(path, absl::StrCat("elements are ", header.type, ", expected float32"));
  NpyArray<float> array{std::move(header.shape), {}};
  array.values.resize(header.elements);
  std::memcpy(array.values.data(), data.data(), data.size());
  return array;
}

absl::StatusOr<NpyWriter> NpyWriter::Create(const std::string& path, int64_t rows, int64_t columns) {
  NpyWriter writer;
  std::error_code error;
  const std::filesystem::file_status target = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(target)) return Bad(path, "is a folder");
  if (std::filesystem::exists(target) && !std::filesystem::is_regular_file(target)) {
    writer.path_ = writer.writing_ = path;
  } else {
    // A link keeps pointing to the file that it points to.
    const std::filesystem::path real = std::filesystem::weakly_canonical(path, error);
    writer.path_ = error ? path : real.string();
    writer.writing_ = writer.path_ + ".partial";
  }
  writer.file_.open(writer.writing_, std::ios::binary | std::ios::trunc);
  if (!writer.file_) {
    return absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  }
  writer.missing_ = rows * columns;
  std::string dict = absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", columns, "), }");
  // Data starts at a multiple of 64 bytes.
  dict.resize((10 + dict.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  dict += '\n';
  const char length[] = {1, 0, static_cast<char>(dict.size() & 0xFF), static_cast<char>(dict.size() >> 8)};
  writer.file_.write(kMagic, 6);
  writer.file_.write(length, 4);
  writer.file_ << dict;
  return writer;
}

absl::Status NpyWriter::Append(absl::Span<const float> values) {
  GF_CHECK_LE(static_cast<int64_t>(values.size()), missing_);
  missing_ -= static_cast<int64_t>(values.size());
  file_.write(reinterpret_cast<const char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file_) return absl::ResourceExhaustedError(absl::StrCat(path_, ": cannot be written: ", std::strerror(errno)));
  return absl::OkStatus();
}

absl::Status NpyWriter::Close() {
  GF_CHECK_EQ(missing_, 0);
  file_.close();
  if (!file_ || (writing_ != path_ && std::rename(writing_.c_str(), path_.c_str()) != 0)) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, ": cannot be written: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
