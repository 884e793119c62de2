#include "worker/checkpoint/checkpoint_test_util.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {
namespace {

std::string LittleEndian(uint64_t value, int bytes) {
  std::string text(bytes, '\0');
  for (int i = 0; i < std::min(bytes, 8); ++i) text[i] = static_cast<char>(value >> (8 * i));
  return text;
}

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

uint16_t ToBf16(float value) {
  const uint32_t bits = BitsOf(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t ToF16(float value) {
  const auto sign = static_cast<uint16_t>(BitsOf(value) >> 16 & 0x8000);
  if (std::isnan(value)) return sign | 0x7e00;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // Numbers of this exponent are multiples of 2^unit; a carry of the rounding into the next exponent comes out right.
  const int unit = magnitude == 0 ? -24 : std::max(exponent - 11, -24);
  const auto multiple = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  return static_cast<uint16_t>(sign | (((unit + 24) << 10) + multiple));
}

float FromF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else {
    magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

std::vector<int64_t> DenseStrides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * sizes[axis];
  return strides;
}

int64_t Elements(const TestTensor& tensor) {
  int64_t elements = 1;
  for (int64_t size : tensor.shape) elements *= size;
  GF_CHECK_EQ(elements, static_cast<int64_t>(tensor.values.size()));
  return elements;
}

}  // namespace

std::string EncodeElements(DType dtype, const std::vector<float>& values) {
  std::string bytes;
  bytes.reserve(values.size() * SizeOf(dtype));
  for (float value : values) {
    switch (dtype) {
      case DType::kF32:
        bytes += LittleEndian(BitsOf(value), 4);
        break;
      case DType::kF16:
        bytes += LittleEndian(ToF16(value), 2);
        break;
      case DType::kBf16:
        bytes += LittleEndian(ToBf16(value), 2);
        break;
      default:
        GF_CHECK(false) << "not a floating-point type: " << Name(dtype);
    }
  }
  return bytes;
}

const char kQuantizedMetadata[] = R"("goldfinch.quantised_version":"1")";

std::string RawSafetensors(const std::vector<RawTensor>& tensors, const std::string& metadata) {
  std::string header = absl::StrCat(R"({"__metadata__":{)", metadata, "}"), data;
  for (const RawTensor& tensor : tensors) {
    absl::StrAppend(&header, R"(,")", tensor.name, R"(":{"dtype":")", tensor.dtype, R"(","shape":)", tensor.shape,
                    R"(,"data_offsets":[)", data.size(), ",", data.size() + tensor.bytes.size(), "]}");
    data += tensor.bytes;
  }
  header += "}";
  return LittleEndian(header.size(), 8) + header + data;
}

std::vector<RawTensor> QuantizedTensors() {
  return {{"head.weight.q8", "U8", "[2, 8, 16, 4]", std::string(1024, '\x81')},
          {"head.weight.scales", "F32", "[32]", EncodeElements(DType::kF32, std::vector<float>(32, 0.5f))},
          {"key.weight.q4", "U8", "[1, 8, 16, 4]", std::string(512, '\x7A')},
          {"key.weight.scales", "F16", "[1, 2, 16]", EncodeElements(DType::kF16, std::vector<float>(32, 0.25f))},
          {"ln.weight", "F32", "[2]", EncodeElements(DType::kF32, {1, 2})},
          {"a.q8t", "U8", "[1, 32, 128]", std::string(4096, '\x12')},
          {"a.scales", "F32", "[128]", EncodeElements(DType::kF32, std::vector<float>(128, 1.f))},
          {"b.q4t", "U8", "[1, 64, 64]", std::string(4096, '\x34')},
          {"b.scales", "F16", "[2, 128]", EncodeElements(DType::kF16, std::vector<float>(256, 1.f))}};
}

std::vector<float> DecodeElements(const ConstTensor& tensor) {
  std::vector<float> values(tensor.shape.elements());
  if (tensor.dtype == DType::kF32) {
    std::memcpy(values.data(), tensor.data, tensor.bytes());
    return values;
  }
  const auto* halves = static_cast<const uint16_t*>(tensor.data);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = uint32_t{halves[i]} << 16;
    if (tensor.dtype == DType::kF16) {
      values[i] = FromF16(halves[i]);
    } else {
      std::memcpy(&values[i], &bits, sizeof(float));
    }
  }
  return values;
}

absl::Status WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(path + ": cannot be written");
}

absl::Status WritePth(const std::string& path, const std::vector<TestTensor>& tensors) {
  return WriteFile(path, PthBytes(tensors));
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TestTensor>& tensors) {
  return WriteFile(path, SafetensorsBytes(tensors));
}

std::string PthBytes(const std::vector<TestTensor>& tensors) {
  std::vector<TestView> views;
  std::vector<std::pair<std::string, std::string>> storages;
  for (const TestTensor& tensor : tensors) {
    const std::string key = std::to_string(views.size());
    views.push_back({tensor.name, tensor.dtype, key, Elements(tensor), 0, tensor.shape, DenseStrides(tensor.shape)});
    storages.emplace_back(key, EncodeElements(tensor.dtype, tensor.values));
  }
  return PthBytes(StateDictPickle(views), storages);
}

std::string SafetensorsBytes(const std::vector<TestTensor>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const TestTensor& tensor : tensors) {
    const int64_t begin = static_cast<int64_t>(data.size());
    data += EncodeElements(tensor.dtype, tensor.values);
    header[tensor.name] = {{"dtype", tensor.dtype == DType::kF32   ? "F32"
                                     : tensor.dtype == DType::kF16 ? "F16"
                                                                   : "BF16"},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, begin + Elements(tensor) * SizeOf(tensor.dtype)}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return LittleEndian(text.size(), 8) + text + data;
}

PickleWriter& PickleWriter::Str(const std::string& text) { return Op("X" + LittleEndian(text.size(), 4) + text); }

PickleWriter& PickleWriter::Int(int64_t value) {
  if (value >= 0 && value < 256) return Op("K" + LittleEndian(value, 1));
  if (value == static_cast<int32_t>(value)) return Op("J" + LittleEndian(value, 4));
  return Op("\x8a\x08" + LittleEndian(value, 8));
}

PickleWriter& PickleWriter::Tuple(const std::vector<int64_t>& values) {
  Op("(");
  for (int64_t value : values) Int(value);
  return Op("t");
}

PickleWriter& PickleWriter::Tensor(const TestView& view) {
  const char* storage = view.dtype == DType::kF32   ? "FloatStorage"
                        : view.dtype == DType::kF16 ? "HalfStorage"
                                                    : "BFloat16Storage";
  Global("torch._utils", "_rebuild_tensor_v2").Op("(");
  Op("(").Str("storage").Global("torch", storage).Str(view.storage).Str("cpu").Int(view.storage_elements).Op("tQ");
  Int(view.offset).Tuple(view.sizes).Tuple(view.strides).Op("\x89");
  return Global("collections", "OrderedDict").Op(")R").Op("tR");
}

std::string StateDictPickle(const std::vector<TestView>& views) {
  PickleWriter pickle;
  pickle.Op("}(");
  for (const TestView& view : views) pickle.Str(view.name).Tensor(view);
  return pickle.Op("u").Finish();
}

std::string ZipBytes(const std::vector<ZipFile>& files, int alignment_bytes, bool zip64) {
  std::string zip;
  std::string directory;
  for (const ZipFile& file : files) {
    const uint64_t offset = file.local_offset >= 0 ? file.local_offset : zip.size();
    const uint64_t size = file.bytes.size() + file.size_delta;
    const uint32_t crc =
        crc32_z(0, reinterpret_cast<const Bytef*>(file.bytes.data()), file.bytes.size()) ^ file.crc32_xor;
    // Both kinds of header share these fields: flags, method, time, date, checksum, two sizes, length of the name.
    const std::string common = LittleEndian(0, 2) + LittleEndian(file.method, 2) + LittleEndian(0, 4) +
                               LittleEndian(crc, 4) + LittleEndian(zip64 ? 0xffffffff : size, 4) +
                               LittleEndian(zip64 ? 0xffffffff : size, 4) + LittleEndian(file.name.size(), 2);
    const std::string sizes = LittleEndian(size, 8) + LittleEndian(size, 8);

    std::string extra = zip64 ? LittleEndian(1, 2) + LittleEndian(16, 2) + sizes : "";
    const size_t unpadded = zip.size() + 30 + file.name.size() + extra.size() + 4;
    const size_t padding = (alignment_bytes - unpadded % alignment_bytes) % alignment_bytes;
    extra += "FB" + LittleEndian(padding, 2) + std::string(padding, 'Z');
    absl::StrAppend(&zip, "PK\3\4", LittleEndian(45, 2), common, LittleEndian(extra.size(), 2), file.name, extra,
                    file.bytes);

    const std::string wide = zip64 ? LittleEndian(1, 2) + LittleEndian(24, 2) + sizes + LittleEndian(offset, 8) : "";
    absl::StrAppend(&directory, "PK\1\2", LittleEndian(45, 2), LittleEndian(45, 2), common,
                    LittleEndian(wide.size(), 2), LittleEndian(0, 10), LittleEndian(zip64 ? 0xffffffff : offset, 4),
                    file.name, wide);
  }
  const uint64_t directory_offset = zip.size();
  zip += directory;
  if (zip64) {
    const uint64_t end_offset = zip.size();
    zip += "PK\6\6" + LittleEndian(44, 8) + LittleEndian(45, 2) + LittleEndian(45, 2) + LittleEndian(0, 8) +
           LittleEndian(files.size(), 8) + LittleEndian(files.size(), 8) + LittleEndian(directory.size(), 8) +
           LittleEndian(directory_offset, 8);
    zip += "PK\6\7" + LittleEndian(0, 4) + LittleEndian(end_offset, 8) + LittleEndian(1, 4);
  }
  zip += "PK\5\6" + LittleEndian(0, 4) + LittleEndian(zip64 ? 0xffff : files.size(), 2) +
         LittleEndian(zip64 ? 0xffff : files.size(), 2) + LittleEndian(zip64 ? 0xffffffff : directory.size(), 4) +
         LittleEndian(zip64 ? 0xffffffff : directory_offset, 4) + LittleEndian(0, 2);
  return zip;
}

std::string PthBytes(const std::string& pickle, const std::vector<std::pair<std::string, std::string>>& storages) {
  std::vector<ZipFile> files = {{.name = "model/data.pkl", .bytes = pickle},
                                {.name = "model/byteorder", .bytes = "little"}};
  for (const auto& [key, bytes] : storages) files.push_back({.name = "model/data/" + key, .bytes = bytes});
  files.push_back({.name = "model/version", .bytes = "3\n"});
  return ZipBytes(files);
}

}  // namespace goldfinch
