#include "worker/checkpoint/safetensors.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

const std::vector<float> kValues = {0, 1, -2, 3, 4, 5.5};

std::string File(const std::string& header, size_t data_bytes) {
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header + std::string(data_bytes, '\0');
}

std::string MessageOf(const std::string& file) { return ReadSafetensors(file).status().ToString(); }
std::string MessageOf(const std::string& header, size_t data_bytes) { return MessageOf(File(header, data_bytes)); }

TEST(SafetensorsTest, AllDTypes) {
  const std::string file = SafetensorsBytes({{"a", DType::kF32, {2, 3}, kValues},
                                             {"b", DType::kF16, {6}, kValues},
                                             {"c", DType::kBf16, {1, 3, 2, 1}, kValues},
                                             {"d", DType::kF32, {}, {2.5}}});
  const auto layout = ReadSafetensors(file);
  ASSERT_TRUE(layout.ok()) << layout.status();
  ASSERT_EQ(layout->tensors.size(), 4u);
  EXPECT_EQ(layout->tensors[0].data.shape, (Shape{2, 3}));
  EXPECT_EQ(layout->tensors[1].data.dtype, DType::kF16);
  EXPECT_EQ(layout->tensors[2].data.shape, (Shape{1, 3, 2, 1}));
  EXPECT_EQ(layout->tensors[3].data.shape, (Shape{1})) << "a single number";
  for (int i = 0; i < 3; ++i) EXPECT_EQ(DecodeElements(layout->tensors[i].data), kValues);
  EXPECT_EQ(layout->owned_bytes, 0);
}

TEST(SafetensorsTest, UnalignedTensorsAreCopied) {
  // An odd header: one of the two types ends up unaligned wherever the file lies.
  std::string file =
      File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )", 0) + EncodeElements(DType::kF32, {1.5});
  int64_t copied = 0;
  for (int shift = 0; shift < 4; ++shift) {
    const std::string shifted = std::string(shift, ' ') + file;
    const auto layout = ReadSafetensors({shifted.data() + shift, file.size()});
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(*layout->tensors[0].data.f32(), 1.5f);
    copied += layout->owned_bytes;
  }
  EXPECT_EQ(copied, 12);
}

TEST(SafetensorsTest, Headers) {
  EXPECT_THAT(MessageOf("abc"), HasSubstr("is cut short: 3 bytes"));
  EXPECT_THAT(MessageOf(std::string(8, '\xff') + "{}"),
              HasSubstr("has a header of 18446744073709551615 bytes; the limit is 100000000"));
  EXPECT_THAT(MessageOf(std::string("\x40\0\0\0\0\0\0\0{}", 10)),
              HasSubstr("is cut short: its header has 64 bytes, the whole file 10"));
  EXPECT_THAT(MessageOf("[]", 0), HasSubstr("is not a JSON object"));
  EXPECT_THAT(MessageOf("{}", 0), HasSubstr("holds no tensor"));
  EXPECT_THAT(MessageOf(R"({"__metadata__":{"a":"b"}})", 0), HasSubstr("holds no tensor"));
  EXPECT_THAT(MessageOf(R"({"a":)", 0), HasSubstr("is not valid JSON"));
  EXPECT_THAT(MessageOf("{\"\xff\":1}", 0), HasSubstr("is not valid JSON"));
  EXPECT_THAT(MessageOf("{\"a\":" + std::string(100'000, '['), 0), HasSubstr("an array at 'a', expected an object"));
  EXPECT_THAT(MessageOf("{\"__metadata__\":{\"a\":{\"b\":{}}}}", 0), HasSubstr("an object at 'a', expected a string"));
  EXPECT_THAT(MessageOf(R"({"a":1})", 0), HasSubstr("a number at 'a', expected an object"));
  EXPECT_THAT(MessageOf(R"({"a":null})", 0), HasSubstr("a null value at 'a', expected an object"));
  EXPECT_THAT(MessageOf(R"({"a":{}} junk)", 0), HasSubstr("INVALID_ARGUMENT"));
}

TEST(SafetensorsTest, Tensors) {
  const std::string good = R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})";
  EXPECT_EQ(MessageOf(good, 4), "OK");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string header = good;
    header.replace(header.find(from), from.size(), to);
    return MessageOf(header, 4);
  };
  EXPECT_THAT(with("F16", "I16"), HasSubstr("tensor 'a' has dtype 'I16'; readable are F32, F16, BF16 and U8"));
  EXPECT_THAT(with("\"F16\"", "16"), HasSubstr("tensor 'a' has a number at dtype, expected a string"));
  EXPECT_THAT(with("[2]", "[3]"), HasSubstr("tensor 'a' has 4 bytes, but its shape has 3 elements of 2 bytes"));
  EXPECT_THAT(with("[2]", "[-2]"), HasSubstr("tensor 'a' has a negative number, -2"));
  EXPECT_THAT(with("[2]", "[2.0]"), HasSubstr("tensor 'a' has '2.0', not an integer"));
  EXPECT_THAT(with("[2]", "[1e999]"), HasSubstr("not valid JSON"));
  EXPECT_THAT(with("[2]", "[[2]]"), HasSubstr("tensor 'a' has an array at shape, expected an integer"));
  EXPECT_THAT(with("[2]", "[2,1,1,1,1]"), HasSubstr("tensor 'a' has more than 4 numbers in its shape; the limit is 4"));
  EXPECT_THAT(with("[2]", "[4294967296,4294967296,4294967296]"), HasSubstr("tensor 'a' has a shape that overflows"));
  EXPECT_THAT(with("[2]", "[18446744073709551615]"), HasSubstr("a shape that overflows"));
  EXPECT_THAT(with("[2]", "[0]"), HasSubstr("tensor 'a' has 4 bytes, but its shape has 0 elements"));
  EXPECT_THAT(with("[0,4]", "[0]"), HasSubstr("tensor 'a' needs dtype, shape and two data_offsets"));
  EXPECT_THAT(with("[0,4]", "[4,0]"), HasSubstr("tensor 'a' has data_offsets [4, 0], which run backwards"));
  EXPECT_THAT(with("[0,4]", "[0,5]"),
              HasSubstr("tensor 'a' has data_offsets [0, 5], but the file's data ends at 4 (cut short?)"));
  EXPECT_THAT(with("[0,4]", "[2,4]"),
              HasSubstr("tensor 'a' has data_offsets [2, 4], but nothing fills the bytes from 0 on"));
  EXPECT_THAT(with("[0,4]", "[0,2]"), HasSubstr("has 4 bytes, of which no tensor has those from 2 on"));
  EXPECT_THAT(with("[0,4]", "[0,18446744073709551615]"), HasSubstr("but the file's data ends at 4"));
  EXPECT_THAT(with("\"shape\":[2],", ""), HasSubstr("tensor 'a' needs dtype, shape and two data_offsets"));
  EXPECT_THAT(with("\"shape\":[2]", "\"shape\":[2],\"shape\":[2]"),
              HasSubstr("has an unknown or repeated field 'shape'"));
  EXPECT_THAT(with("\"shape\":[2]", "\"size\":[2]"), HasSubstr("tensor 'a' has an unknown or repeated field 'size'"));
  EXPECT_THAT(with("\"a\"", "\"\""), HasSubstr("a tensor without a name"));
}

TEST(SafetensorsTest, SeveralTensors) {
  const auto two = [](const std::string& first, const std::string& second, const std::string& name = "b") {
    return R"({"a":{"dtype":"F16","shape":[2],"data_offsets":)" + first + R"(},")" + name +
           R"(":{"dtype":"F16","shape":[2],"data_offsets":)" + second + "}}";
  };
  EXPECT_EQ(MessageOf(two("[0,4]", "[4,8]"), 8), "OK");
  EXPECT_EQ(MessageOf(two("[4,8]", "[0,4]"), 8), "OK") << "in any order";
  EXPECT_THAT(MessageOf(two("[0,4]", "[2,6]"), 6),
              HasSubstr("tensor 'b' has data_offsets [2, 6], which overlap the tensor that ends at 4"));
  EXPECT_THAT(MessageOf(two("[0,4]", "[0,4]"), 4), HasSubstr("overlap"));
  EXPECT_THAT(MessageOf(two("[0,4]", "[6,10]"), 10), HasSubstr("nothing fills the bytes from 4 on"));
  EXPECT_THAT(MessageOf(two("[0,4]", "[4,8]", "a"), 8), HasSubstr("the header has 'a' twice"));
}

TEST(SafetensorsTest, EmptyTensorsAreRefused) {
  EXPECT_THAT(MessageOf(R"({"a":{"dtype":"F16","shape":[0,9223372036854775807,8],"data_offsets":[0,0]}})", 0),
              HasSubstr("tensor 'a' of shape [0, 9223372036854775807, 8] is empty"));
}

TEST(SafetensorsTest, EveryTruncationIsAnError) {
  const std::string file = SafetensorsBytes({{"a", DType::kF32, {2, 3}, kValues}, {"b", DType::kBf16, {6}, kValues}});
  for (size_t size = 0; size < file.size(); ++size) EXPECT_NE(MessageOf(file.substr(0, size)), "OK") << size;
}

}  // namespace
}  // namespace goldfinch
