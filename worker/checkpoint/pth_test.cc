#include "worker/checkpoint/pth.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<float> kValues = {0, 1, -2, 3, 4, 5.5, 6, 7, 8, 9, 10, 11};
const std::string kF32Bytes = EncodeElements(DType::kF32, kValues);

TestView F32View(std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset = 0) {
  return {"w", DType::kF32, "0", 12, offset, std::move(sizes), std::move(strides)};
}

// An archive with the views of one storage of 12 fp32 numbers.
std::string OneStorage(const std::vector<TestView>& views) {
  return PthBytes(StateDictPickle(views), {{"0", kF32Bytes}});
}

absl::Status ErrorOf(const std::string& file) { return ReadPth(file).status(); }
std::string MessageOf(const std::string& file) { return ErrorOf(file).ToString(); }

TEST(PthTest, AllDTypesInPlace) {
  const std::string file = PthBytes({{"a", DType::kF32, {3, 4}, kValues},
                                     {"b", DType::kF16, {12}, kValues},
                                     {"c", DType::kBf16, {1, 3, 2, 2}, kValues},
                                     {"d", DType::kBf16, {}, {2.5}}});
  const auto layout = ReadPth(file);
  ASSERT_TRUE(layout.ok()) << layout.status();
  ASSERT_EQ(layout->tensors.size(), 4u);
  EXPECT_EQ(layout->tensors[0].data.shape, (Shape{3, 4}));
  EXPECT_EQ(layout->tensors[2].data.shape, (Shape{1, 3, 2, 2}));
  EXPECT_EQ(layout->tensors[3].data.shape, (Shape{1})) << "a single number";
  for (int i = 0; i < 3; ++i) {
    const ConstTensor& data = layout->tensors[i].data;
    EXPECT_EQ(data.dtype, std::vector({DType::kF32, DType::kF16, DType::kBf16})[i]);
    EXPECT_EQ(DecodeElements(data), kValues);
    EXPECT_GE(data.data, file.data());
    EXPECT_LT(data.data, file.data() + file.size());
  }
  EXPECT_EQ(layout->owned_bytes, 0);
}

TEST(PthTest, Views) {
  const auto named = [](std::string name, TestView view) {
    view.name = std::move(name);
    return view;
  };
  const std::string file =
      OneStorage({named("whole", F32View({3, 4}, {4, 1})), named("rows", F32View({2, 4}, {4, 1}, 4)),
                  named("transposed", F32View({4, 3}, {1, 4})), named("column", F32View({3}, {4}, 1)),
                  named("block", F32View({2, 2}, {4, 1}, 5)), named("odd strides", F32View({1, 4}, {99, 1}))});
  const auto layout = ReadPth(file);
  ASSERT_TRUE(layout.ok()) << layout.status();
  const std::vector<StoredTensor>& tensors = layout->tensors;
  EXPECT_EQ(DecodeElements(tensors[0].data), kValues);
  EXPECT_EQ(static_cast<const char*>(tensors[1].data.data) - static_cast<const char*>(tensors[0].data.data), 16);
  EXPECT_THAT(DecodeElements(tensors[2].data), ElementsAre(0, 4, 8, 1, 5.5, 9, -2, 6, 10, 3, 7, 11));
  EXPECT_EQ(tensors[2].data.shape, (Shape{4, 3}));
  EXPECT_THAT(DecodeElements(tensors[3].data), ElementsAre(1, 5.5, 9));
  EXPECT_THAT(DecodeElements(tensors[4].data), ElementsAre(5.5, 6, 9, 10));
  EXPECT_EQ(tensors[5].data.data, tensors[0].data.data) << "the stride of an axis of size 1 means nothing";
  EXPECT_EQ(layout->owned_bytes, 48 + 12 + 16);
}

TEST(PthTest, UnalignedStoragesAreCopied) {
  for (int alignment : {1, 3}) {
    const std::string file = ZipBytes({{.name = "m/data.pkl", .bytes = StateDictPickle({F32View({3, 4}, {4, 1})})},
                                       {.name = "m/x", .bytes = "x"},
                                       {.name = "m/data/0", .bytes = kF32Bytes}},
                                      alignment);
    // One of four ways to lie in memory is aligned.
    int64_t copied = 0;
    for (int shift = 0; shift < 4; ++shift) {
      const std::string shifted = std::string(shift, ' ') + file;
      const auto layout = ReadPth({shifted.data() + shift, file.size()});
      ASSERT_TRUE(layout.ok()) << layout.status();
      EXPECT_EQ(DecodeElements(layout->tensors[0].data), kValues);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(layout->tensors[0].data.data) % 4, 0u);
      copied += layout->owned_bytes;
    }
    EXPECT_EQ(copied, 3 * 48);
  }
}

TEST(PthTest, Zip64) {
  const std::string file = ZipBytes({{.name = "m/data.pkl", .bytes = StateDictPickle({F32View({3, 4}, {4, 1})})},
                                     {.name = "m/data/0", .bytes = kF32Bytes}},
                                    64, /*zip64=*/true);
  const auto layout = ReadPth(file);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(DecodeElements(layout->tensors[0].data), kValues);
}

TEST(PthTest, ViewsThatCannotBe) {
  EXPECT_THAT(MessageOf(OneStorage({F32View({4, 4}, {4, 1})})),
              HasSubstr("INVALID_ARGUMENT: tensor 'w' of shape [4, 4] has 16 elements, but 'model/data/0' has 12"));
  EXPECT_THAT(
      MessageOf(OneStorage({F32View({3, 4}, {4, 1}, 1)})),
      HasSubstr(
          "tensor 'w' of shape [3, 4] with strides [4, 1] at offset 1 lies outside 'model/data/0', which has 12"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({2}, {12})})), HasSubstr("lies outside"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({2}, {1}, -1)})), HasSubstr("at offset -1 lies outside"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({2}, {1}, INT64_MAX)})), HasSubstr("lies outside"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({2}, {-1}, 5)})), HasSubstr("negative or overflow"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({3, 3}, {INT64_MAX / 2, INT64_MAX / 2})})),
              HasSubstr("negative or overflow"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({-1}, {1})})), HasSubstr("negative or overflows"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({int64_t{1} << 32, int64_t{1} << 32}, {0, 0})})), HasSubstr("overflows"));
  EXPECT_THAT(MessageOf(OneStorage({F32View({0, INT64_MAX, 8}, {1, 1, 1})})), HasSubstr("is empty"));
  // A few bytes that ask for a terabyte.
  EXPECT_THAT(MessageOf(OneStorage({F32View({int64_t{1} << 38}, {0})})), HasSubstr("has 274877906944 elements, but"));
}

TEST(PthTest, CopiesAreLimitedToTheSizeOfTheFile) {
  std::vector<TestView> views;
  views.reserve(20);
  const std::string storage = EncodeElements(DType::kF32, std::vector<float>(100'000, 1));
  for (int i = 0; i < 20; ++i) {
    views.push_back({"w" + std::to_string(i), DType::kF32, "0", 100'000, 0, {1000, 100}, {1, 1000}});
  }
  EXPECT_THAT(
      MessageOf(PthBytes(StateDictPickle(views), {{"0", storage}})),
      AllOf(HasSubstr("tensor 'w1' of shape [1000, 100] must be copied"), HasSubstr("800000 bytes; the limit is 40")));
}

TEST(PthTest, Storages) {
  const std::string pickle = StateDictPickle({F32View({3, 4}, {4, 1})});
  EXPECT_THAT(MessageOf(PthBytes(pickle, {})), HasSubstr("tensor 'w': storage 'model/data/0' is not in the archive"));
  EXPECT_THAT(MessageOf(PthBytes(pickle, {{"0", kF32Bytes.substr(1)}})),
              HasSubstr("tensor 'w': storage 'model/data/0' has 47 bytes, but should have 12 elements of 4 bytes"));
  EXPECT_THAT(MessageOf(PthBytes(pickle, {{"0", kF32Bytes + kF32Bytes}})),
              HasSubstr("has 96 bytes, but should have 12"));
  TestView as_half = {"v", DType::kF16, "0", 24, 0, {24}, {1}};
  EXPECT_THAT(MessageOf(OneStorage({F32View({12}, {1}), as_half})),
              HasSubstr("is of type f16 here and f32 for another tensor"));
}

TEST(PthTest, Archives) {
  ZipFile pickle = {.name = "m/data.pkl", .bytes = StateDictPickle({F32View({12}, {1})})};
  ZipFile storage = {.name = "m/data/0", .bytes = kF32Bytes};
  EXPECT_EQ(MessageOf(ZipBytes({pickle, storage})), "OK");
  EXPECT_THAT(MessageOf(ZipBytes({storage})), HasSubstr("without a '<name>/data.pkl'"));
  EXPECT_THAT(MessageOf(ZipBytes({pickle, storage, {.name = "n/data.pkl", .bytes = "x"}})),
              HasSubstr("two pickles: 'm/data.pkl' and 'n/data.pkl'"));
  EXPECT_EQ(MessageOf(ZipBytes({pickle, storage, {.name = "m/code/data.pkl", .bytes = "x"}})), "OK");
  EXPECT_EQ(MessageOf(ZipBytes({pickle, storage, {.name = "m/byteorder", .bytes = "little"}})), "OK");
  EXPECT_THAT(MessageOf(ZipBytes({pickle, storage, {.name = "m/byteorder", .bytes = "big"}})),
              HasSubstr("has byte order 'big'; only 'little' can be read"));
  storage.crc32_xor = 1;
  EXPECT_EQ(MessageOf(ZipBytes({pickle, storage})), "OK") << "weights are not read when a file is opened";
  pickle.crc32_xor = 1;
  EXPECT_THAT(
      MessageOf(ZipBytes({pickle, storage})),
      AllOf(HasSubstr("DATA_LOSS: archive file 'm/data.pkl' is damaged: its CRC-32 is "), HasSubstr("should be")));
}

TEST(PthTest, TheFormatBeforeZip) {
  const std::string file("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.");
  EXPECT_TRUE(LooksLikePth(file));
  EXPECT_THAT(MessageOf(file),
              HasSubstr("is in the old torch format (before 1.6): load it with torch.load and save it again"));
}

TEST(PthTest, EveryTruncationIsAnError) {
  const std::string file = OneStorage({F32View({3, 4}, {4, 1})});
  for (size_t size = 0; size < file.size(); ++size) EXPECT_FALSE(ErrorOf(file.substr(0, size)).ok()) << size;
  EXPECT_THAT(MessageOf(file.substr(0, 300)), HasSubstr("after 300 bytes there is no zip directory (cut short?)"));
}

}  // namespace
}  // namespace goldfinch
