#include "base/npy.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Path(const std::string& name) { return absl::StrCat(testing::TempDir(), "/npy_test_", name); }

std::string Write(const std::string& bytes) {
  std::string path = Path("file.npy");
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
std::string Raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// A file of any version with this header and data.
std::string Npy(const std::string& dict, const std::string& data, char version = 1) {
  std::string file = std::string("\x93NUMPY") + version + '\0';
  const auto length = static_cast<uint32_t>(dict.size());
  file += std::string(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
  return file + dict + data;
}

std::string Dict(const std::string& type, const std::string& shape) {
  return absl::StrCat("{'descr': '", type, "', 'fortran_order': False, 'shape': ", shape, ", }   \n");
}

template <typename T>
std::vector<int32_t> ReadInts(const std::string& type, const std::vector<T>& values) {
  const auto array = ReadNpyInts(Write(Npy(Dict(type, absl::StrCat("(", values.size(), ",)")), Raw(values))));
  EXPECT_TRUE(array.ok()) << array.status();
  if (!array.ok()) return {};
  EXPECT_THAT(array->shape, ElementsAre(static_cast<int64_t>(values.size())));
  return array->values;
}

// Both readers must refuse it, with a message that names the file and this.
void ExpectRefused(const std::string& bytes, const std::string& message) {
  const std::string path = Write(bytes);
  for (const absl::Status& status : {ReadNpyInts(path).status(), ReadNpyFloats(path).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(message)));
  }
}

TEST(NpyTest, IntegersOfEverySize) {
  EXPECT_THAT(ReadInts<uint8_t>("|u1", {0, 255}), ElementsAre(0, 255));
  EXPECT_THAT(ReadInts<uint16_t>("<u2", {0, 65535}), ElementsAre(0, 65535));
  EXPECT_THAT(ReadInts<int16_t>("<i2", {-32768, 7}), ElementsAre(-32768, 7));
  EXPECT_THAT(ReadInts<uint32_t>("<u4", {0, INT32_MAX}), ElementsAre(0, INT32_MAX));
  EXPECT_THAT(ReadInts<int32_t>("<i4", {INT32_MIN, INT32_MAX}), ElementsAre(INT32_MIN, INT32_MAX));
  EXPECT_THAT(ReadInts<int64_t>("<i8", {INT32_MIN, INT32_MAX}), ElementsAre(INT32_MIN, INT32_MAX));
  EXPECT_THAT(ReadInts<uint64_t>("<u8", {3}), ElementsAre(3));
  EXPECT_THAT(ReadInts<int32_t>("<i4", {}), IsEmpty());
}

TEST(NpyTest, ValuesThatDoNotFit) {
  const auto refused = [](const std::string& type, const std::string& data, const std::string& value) {
    const absl::Status status = ReadNpyInts(Write(Npy(Dict(type, "(2,)"), data))).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("element 1 is " + value), HasSubstr("2147483647")));
  };
  refused("<u4", Raw<uint32_t>({1, 0x80000000}), "2147483648");
  refused("<i8", Raw<int64_t>({1, int64_t{1} << 40}), "1099511627776");
  refused("<i8", Raw<int64_t>({1, INT64_MIN}), "-9223372036854775808");
  refused("<u8", Raw<uint64_t>({1, UINT64_MAX}), "18446744073709551615");
}

TEST(NpyTest, Floats) {
  const auto array = ReadNpyFloats(Write(Npy(Dict("<f4", "(2, 3)"), Raw<float>({1, 2, 3, 4, 5, -0.5f}))));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(2, 3));
  EXPECT_THAT(array->values, ElementsAre(1, 2, 3, 4, 5, -0.5f));
}

TEST(NpyTest, EveryVersionAndShape) {
  for (const char version : {'\1', '\2', '\3'}) {
    EXPECT_TRUE(ReadNpyInts(Write(Npy(Dict("<i4", "(1,)"), Raw<int32_t>({5}), version))).ok());
  }
  const auto scalar = ReadNpyInts(Write(Npy(Dict("<i4", "()"), Raw<int32_t>({5}))));
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  EXPECT_THAT(scalar->shape, IsEmpty());
  EXPECT_THAT(scalar->values, ElementsAre(5));
  const auto empty = ReadNpyInts(Write(Npy(Dict("<i4", "(3, 0)"), "")));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT(empty->shape, ElementsAre(3, 0));
}

TEST(NpyTest, OtherTypes) {
  const std::string floats = Npy(Dict("<f4", "(1,)"), Raw<float>({1}));
  EXPECT_THAT(std::string(ReadNpyInts(Write(floats)).status().message()),
              HasSubstr("elements are <f4, expected integers"));
  const std::string ints = Npy(Dict("<i4", "(1,)"), Raw<int32_t>({1}));
  EXPECT_THAT(std::string(ReadNpyFloats(Write(ints)).status().message()),
              HasSubstr("elements are <i4, expected float32"));
  for (const char* type : {">i4", "<f8", "|b1", "|V4", "<c8", "=i4"}) {
    const std::string data(type[2] - '0', '\0');
    EXPECT_EQ(ReadNpyInts(Write(Npy(Dict(type, "(1,)"), data))).status().code(), absl::StatusCode::kInvalidArgument)
        << type;
  }
  for (const char* type : {"", "<", "<i", "<i44", "|O", "<ix", "<i0", "<i-1", "<U40"}) {
    ExpectRefused(Npy(Dict(type, "(1,)"), "abcd"), "");
  }
}

TEST(NpyTest, LyingSizes) {
  ExpectRefused(Npy(Dict("<i4", "(3,)"), Raw<int32_t>({1, 2})), "promises 3 elements of 4 bytes, the file has 8 bytes");
  ExpectRefused(Npy(Dict("<i4", "(1,)"), Raw<int32_t>({1, 2})), "promises 1 elements");
  ExpectRefused(Npy(Dict("<i4", "(1,)"), Raw<int32_t>({1}) + "x"), "promises 1 elements");
  ExpectRefused(Npy(Dict("<i4", "(-1,)"), Raw<int32_t>({1})), "an axis of -1");
  ExpectRefused(Npy(Dict("<i4", "(9223372036854775807, 2)"), Raw<int32_t>({1})), "axis of 2");
  ExpectRefused(Npy(Dict("<i4", "(9223372036854775808,)"), Raw<int32_t>({1})), "axis of 9223372036854775808");
  ExpectRefused(Npy(Dict("<i8", "(4611686018427387904,)"), Raw<int64_t>({1})), "promises 4611686018427387904");
  ExpectRefused(Npy(Dict("<i4", "(1.5,)"), Raw<int32_t>({1})), "axis of 1.5");
  ExpectRefused(Npy(Dict("<i4", "(one,)"), Raw<int32_t>({1})), "axis of one");
}

TEST(NpyTest, HostileHeaders) {
  const std::string data = Raw<int32_t>({1});
  ExpectRefused(Npy("", data), "no descr");
  ExpectRefused(Npy("{'descr': <i4, 'fortran_order': False, 'shape': (1,)}", data), "descr is no type");
  ExpectRefused(Npy("{'descr': '<i4", data), "descr is no type");
  ExpectRefused(Npy("{'descr':", data), "descr is no type");
  ExpectRefused(Npy("{'descr': '<i4'}", data), "no fortran_order");
  ExpectRefused(Npy("{'descr': '<i4', 'fortran_order': True, 'shape': (1,)}", data), "Fortran order");
  ExpectRefused(Npy("{'descr': '<i4', 'fortran_order': False}", data), "no shape");
  ExpectRefused(Npy("{'descr': '<i4', 'fortran_order': False, 'shape': 1}", data), "shape is no tuple");
  ExpectRefused(Npy("{'descr': '<i4', 'fortran_order': False, 'shape': (1", data), "shape is no tuple");
  ExpectRefused(Npy("{'descr': '<i4', 'fortran_order': False, 'shape':", data), "shape is no tuple");
  ExpectRefused(Npy("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,)}", data), "descr is no type");

  ExpectRefused(Npy(std::string(1 << 17, ' '), data, 2), "131072 bytes long");
  std::string long_header = Npy(Dict("<i4", "(1,)"), data, 2);
  long_header[11] = '\x7f';
  ExpectRefused(long_header, "bytes long in a file of");
  ExpectRefused(Npy(Dict("<i4", "(1,)"), data, 4), "version 4");
  ExpectRefused(Npy(Dict("<i4", "(1,)"), data, 0), "version 0");
  ExpectRefused("", "not a .npy file");
  ExpectRefused("PK\x03\x04 something else entirely", "not a .npy file");
}

TEST(NpyTest, TruncatedAnywhere) {
  const std::string good = Npy(Dict("<i4", "(2, 2)"), Raw<int32_t>({1, 2, 3, 4}));
  for (size_t size = 0; size < good.size(); ++size) ExpectRefused(good.substr(0, size), "");
}

TEST(NpyTest, AnyByteChanged) {
  const std::string good = Npy(Dict("<i4", "(2, 2)"), Raw<int32_t>({1, 2, 3, 4}));
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char value : {'\0', '\xff', '9', '(', '\''}) {
      std::string bad = good;
      bad[i] = value;
      const auto array = ReadNpyInts(Write(bad));
      if (array.ok()) {
        EXPECT_LE(array->values.size(), 16u);
      }
    }
  }
}

TEST(NpyTest, FilesThatCannotBeRead) {
  const absl::Status missing = ReadNpyInts(Path("is_not_there")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("is_not_there"));
  EXPECT_THAT(std::string(ReadNpyInts(testing::TempDir()).status().message()), HasSubstr("not a regular file"));
}

TEST(NpyTest, WritesWhatItReads) {
  const std::string path = Path("written.npy");
  auto writer = NpyWriter::Create(path, 3, 2);
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_TRUE(writer->Append({1, 2}).ok());
  EXPECT_TRUE(writer->Append({3, 4, 5, 6}).ok());
  EXPECT_FALSE(std::filesystem::exists(path)) << "not before it is complete";
  EXPECT_TRUE(writer->Close().ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  const auto array = ReadNpyFloats(path);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(3, 2));
  EXPECT_THAT(array->values, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ((Bytes(path).size() - 6 * sizeof(float)) % 64, 0u) << "as NumPy aligns its data";
  std::filesystem::remove(path);
}

TEST(NpyTest, UnwritableOutput) {
  const absl::Status status = NpyWriter::Create(Path("no_such_folder") + "/out.npy", 1, 1).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("no_such_folder/out.npy"), HasSubstr("cannot be written")));
}

TEST(NpyDeathTest, MoreOrLessThanPromised) {
  auto writer = NpyWriter::Create(Path("death.npy"), 1, 2);
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_DEATH(writer->Append({1, 2, 3}).IgnoreError(), "missing_");
  EXPECT_DEATH(writer->Close().IgnoreError(), "missing_");
  std::filesystem::remove(Path("death.npy.partial"));
}

}  // namespace
}  // namespace goldfinch
