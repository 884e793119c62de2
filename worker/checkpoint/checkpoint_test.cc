#include "worker/checkpoint/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<TestTensor> kTensors = {{"emb.weight", DType::kBf16, {4, 2}, {0, 1, 2, 3, 4, 5, 6, 7}},
                                          {"blocks.0.ln0.weight", DType::kF32, {2}, {1, 2}},
                                          {"blocks.0.att.time_mix_k", DType::kF16, {1, 1, 2}, {0.5, -0.5}}};

std::vector<TestTensor> WithNames(const std::vector<std::string>& names) {
  std::vector<TestTensor> tensors;
  tensors.reserve(names.size());
  for (const std::string& name : names) tensors.push_back({name, DType::kF32, {1}, {1}});
  return tensors;
}

// A new, empty folder.
std::string Folder(const std::string& name) {
  std::string path = ::testing::TempDir() + "/checkpoint_test_" + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

std::string MessageOf(const std::string& path) { return Checkpoint::Open(path).status().ToString(); }

TEST(CheckpointTest, BothFormatsGiveTheSame) {
  const std::string folder = Folder("formats");
  ASSERT_TRUE(WritePth(folder + "/a.pth", kTensors).ok());
  ASSERT_TRUE(WriteSafetensors(folder + "/b.safetensors", kTensors).ok());
  for (const std::string& path : {folder + "/a.pth", folder + "/b.safetensors"}) {
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->path(), path);
    EXPECT_EQ((*checkpoint)->file_bytes(), static_cast<int64_t>(std::filesystem::file_size(path)));
    EXPECT_EQ((*checkpoint)->owned_bytes(), 0);
    ASSERT_EQ((*checkpoint)->tensors().size(), 3u);
    EXPECT_EQ((*checkpoint)->tensors()[0].name, "blocks.0.att.time_mix_k") << "sorted";
    for (const TestTensor& tensor : kTensors) {
      const CheckpointTensor* found = (*checkpoint)->Find(tensor.name);
      ASSERT_NE(found, nullptr);
      EXPECT_EQ(found->data.dtype, tensor.dtype);
      EXPECT_EQ(found->data.shape.rank(), static_cast<int>(tensor.shape.size()));
      EXPECT_EQ(DecodeElements(found->data), tensor.values);
    }
    EXPECT_EQ((*checkpoint)->Find("emb"), nullptr);
    EXPECT_EQ((*checkpoint)->Find("zzz"), nullptr);
    const auto non_finite = (*checkpoint)->Verify({});
    ASSERT_TRUE(non_finite.ok()) << non_finite.status();
    EXPECT_THAT(*non_finite, IsEmpty());
  }
}

TEST(CheckpointTest, TheSecondNamingScheme) {
  const std::string file =
      SafetensorsBytes(WithNames({"rwkv.embeddings.weight", "rwkv.blocks.0.attention.time_mix_gate", "head.weight"}));
  const auto checkpoint = Checkpoint::OpenBytes(file, "memory");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_NE((*checkpoint)->Find("emb.weight"), nullptr);
  EXPECT_NE((*checkpoint)->Find("blocks.0.att.time_mix_g"), nullptr);
  EXPECT_NE((*checkpoint)->Find("head.weight"), nullptr);

  const std::string both = SafetensorsBytes(WithNames({"rwkv.embeddings.weight", "emb.weight"}));
  EXPECT_THAT(Checkpoint::OpenBytes(both, "memory").status().ToString(),
              HasSubstr("memory: tensor 'rwkv.embeddings.weight' is the same as 'emb.weight' of memory"));
}

TEST(CheckpointTest, MessagesBeginWithTheFile) {
  const std::string folder = Folder("messages");
  const std::string path = folder + "/m.pth";
  EXPECT_THAT(MessageOf(path), AllOf(HasSubstr("NOT_FOUND: "), HasSubstr(path)));
  ASSERT_TRUE(WriteFile(path, "").ok());
  EXPECT_EQ(MessageOf(path), "INVALID_ARGUMENT: " + path + ": is empty");
  ASSERT_TRUE(WriteFile(path, "<!DOCTYPE html>\n<html>").ok());
  EXPECT_EQ(MessageOf(path),
            "INVALID_ARGUMENT: " + path + ": is neither .pth nor safetensors: it begins with '<!DOCTYPE html>\\n'");
  ASSERT_TRUE(
      WriteFile(path, PthBytes(PickleWriter().Global("os", "system").Str("true").Op("\x85R").Finish(), {})).ok());
  EXPECT_EQ(MessageOf(path),
            "INVALID_ARGUMENT: " + path + ": the pickle imports 'os.system', which is not allowed (at byte 2)");
}

TEST(CheckpointTest, Folders) {
  const std::string folder = Folder("folders");
  EXPECT_THAT(MessageOf(folder), HasSubstr("holds no .pth, no .safetensors and no pytorch_model.bin file"));
  ASSERT_TRUE(WritePth(folder + "/one.pth", kTensors).ok());
  ASSERT_TRUE(WriteFile(folder + "/config.json", "{}").ok());
  EXPECT_EQ(Checkpoint::Open(folder).value()->path(), folder + "/one.pth");
  ASSERT_TRUE(WritePth(folder + "/two.pth", kTensors).ok());
  EXPECT_THAT(MessageOf(folder),
              HasSubstr("holds 2 models, " + folder + "/one.pth and " + folder + "/two.pth; name one"));
  ASSERT_TRUE(WriteSafetensors(folder + "/model.safetensors", kTensors).ok());
  EXPECT_EQ(Checkpoint::Open(folder).value()->path(), folder + "/model.safetensors");
}

TEST(CheckpointTest, Shards) {
  const std::string folder = Folder("shards");
  const std::string index = folder + "/model.safetensors.index.json";
  ASSERT_TRUE(WriteSafetensors(folder + "/1.safetensors", WithNames({"b", "rwkv.embeddings.weight"})).ok());
  ASSERT_TRUE(WriteSafetensors(folder + "/2.safetensors", {{"a", DType::kF32, {1}, {INFINITY}}}).ok());
  ASSERT_TRUE(WriteFile(index, R"({"metadata":{},"weight_map":{"b":"1.safetensors","a":"2.safetensors",
                                   "rwkv.embeddings.weight":"1.safetensors"}})")
                  .ok());
  for (const std::string& path : {index, folder}) {
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->path(), index);
    ASSERT_EQ((*checkpoint)->tensors().size(), 3u);
    EXPECT_EQ((*checkpoint)->tensors()[2].name, "emb.weight");
    EXPECT_THAT(*(*checkpoint)->Verify({.threads = 2}), ElementsAre("a"));
  }
  const auto message_with = [&](const std::string& text) {
    EXPECT_TRUE(WriteFile(index, text).ok());
    return MessageOf(index);
  };
  EXPECT_THAT(message_with("{"), AllOf(HasSubstr(index), HasSubstr("is not a JSON object")));
  EXPECT_THAT(message_with("[1]"), HasSubstr("has no weight_map"));
  EXPECT_THAT(message_with(R"({"weight_map":[]})"), HasSubstr("has no weight_map"));
  EXPECT_THAT(message_with(R"({"weight_map":{"a":7}})"), HasSubstr("tensor 'a' is not in a file beside the index"));
  for (const char* name : {"../secret", "/etc/passwd", "a/b", "..", ".", "", "2.safetensors\\u0000.x"}) {
    const std::string text = absl::StrCat(R"({"weight_map":{"a":")", name, R"("}})");
    EXPECT_THAT(message_with(text), HasSubstr("is not in a file beside the index")) << name;
  }
  EXPECT_THAT(message_with(R"({"weight_map":{"a":"3.safetensors"}})"), HasSubstr(folder + "/3.safetensors"));
  EXPECT_THAT(message_with(R"({"weight_map":{"a":"2.safetensors","c":"2.safetensors"}})"),
              HasSubstr("2.safetensors: has no tensor 'c', which " + index + " says it has"));
  ASSERT_TRUE(WriteSafetensors(folder + "/3.safetensors", WithNames({"b"})).ok());
  EXPECT_THAT(message_with(R"({"weight_map":{"b":"3.safetensors","a":"1.safetensors"}})"),
              HasSubstr("has no tensor 'a'"));
  EXPECT_THAT(message_with(R"({"weight_map":{"rwkv.embeddings.weight":"1.safetensors","b":"3.safetensors"}})"),
              HasSubstr("3.safetensors: tensor 'b' is the same as 'b' of " + folder + "/1.safetensors"));
}

TEST(CheckpointTest, HuggingFaceFoldersOfPthFiles) {
  const std::string folder = Folder("hugging_face");
  ASSERT_TRUE(WritePth(folder + "/pytorch_model.bin", WithNames({"rwkv.embeddings.weight"})).ok());
  auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->path(), folder + "/pytorch_model.bin");
  EXPECT_NE((*checkpoint)->Find("emb.weight"), nullptr);

  const std::string index = folder + "/pytorch_model.bin.index.json";
  const std::string first = "pytorch_model-00001-of-00002.bin", second = "pytorch_model-00002-of-00002.bin";
  ASSERT_TRUE(WritePth(folder + "/" + first, WithNames({"rwkv.embeddings.weight", "b"})).ok());
  ASSERT_TRUE(WritePth(folder + "/" + second, WithNames({"c"})).ok());
  ASSERT_TRUE(WriteFile(index, absl::StrCat(R"({"metadata":{"total_size":[1,{"x":[]}]},"weight_map":{"b":")", first,
                                            R"(","c":")", second, R"(","rwkv.embeddings.weight":")", first, R"("}})"))
                  .ok());
  for (const std::string& path : {folder, index}) {
    checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->path(), index);
    EXPECT_EQ((*checkpoint)->tensors().size(), 3u);
  }
  ASSERT_TRUE(WriteSafetensors(folder + "/model.safetensors", WithNames({"a"})).ok());
  EXPECT_EQ(Checkpoint::Open(folder).value()->path(), folder + "/model.safetensors");
}

TEST(CheckpointTest, AnIndexIsBounded) {
  const std::string index = Folder("bounded_index") + "/pytorch_model.bin.index.json";
  std::string names;
  for (int i = 0; i <= 1 << 17; ++i) absl::StrAppend(&names, i == 0 ? "" : ",", "\"", i, "\":\"x\"");
  ASSERT_TRUE(WriteFile(index, absl::StrCat("{\"weight_map\":{", names, "}}")).ok());
  EXPECT_THAT(MessageOf(index), HasSubstr("names 131073 tensors; the limit is 131072"));
  names.clear();
  for (int i = 0; i <= 1024; ++i) absl::StrAppend(&names, i == 0 ? "" : ",", "\"", i, "\":\"", i, "\"");
  ASSERT_TRUE(WriteFile(index, absl::StrCat("{\"weight_map\":{", names, "}}")).ok());
  EXPECT_THAT(MessageOf(index), HasSubstr("names 1025 files; the limit is 1024"));
  ASSERT_TRUE(
      WriteFile(index, absl::StrCat("{\"a\":", std::string(1 << 20, '['), std::string(1 << 20, ']'), "}")).ok());
  EXPECT_THAT(MessageOf(index), HasSubstr("has no weight_map"));
}

TEST(CheckpointTest, VerifyFindsWrongChecksums) {
  const std::string file = ZipBytes(
      {{.name = "m/data.pkl",
        .bytes = StateDictPickle({{"w", DType::kF32, "0", 1, 0, {1}, {1}}, {"v", DType::kF32, "1", 1, 0, {1}, {1}}})},
       {.name = "m/data/0", .bytes = "abcd"},
       {.name = "m/data/1", .bytes = "abcd", .crc32_xor = 0xff}});
  const auto checkpoint = Checkpoint::OpenBytes(file, "m.pth");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Verify({}).status().ToString(),
            "DATA_LOSS: m.pth: 'm/data/1' (tensor 'v') is damaged: its CRC-32 is ed82cd11 and should be ed82cdee");
  EXPECT_TRUE((*checkpoint)->Verify({.checksums = false}).ok());

  const std::string unused =
      ZipBytes({{.name = "m/data.pkl", .bytes = StateDictPickle({{"w", DType::kF32, "0", 1, 0, {1}, {1}}})},
                {.name = "m/data/0", .bytes = "abcd"},
                {.name = "m/data/1", .bytes = "abcd", .crc32_xor = 0xff}});
  EXPECT_THAT(Checkpoint::OpenBytes(unused, "m.pth").value()->Verify({}).status().ToString(),
              HasSubstr("'m/data/1' (no tensor) is damaged"))
      << "storages that no tensor is in are checked, too";
  EXPECT_TRUE((*checkpoint)->Verify({.tensors = [](std::string_view name) { return name != "v"; }}).ok())
      << "the damaged part is of another tensor";
}

TEST(CheckpointTest, VerifyNamesTensorsWithNonFiniteValues) {
  // NaN at element 5 of one storage: in one view, beside another, and between the columns of a third.
  std::vector<float> values(12, 1);
  values[5] = NAN;
  const std::string file =
      PthBytes(StateDictPickle({{"with", DType::kBf16, "0", 12, 4, {2}, {1}},
                                {"beside", DType::kBf16, "0", 12, 6, {6}, {1}},
                                {"between", DType::kBf16, "0", 12, 0, {3}, {4}},
                                {"strided", DType::kBf16, "0", 12, 1, {3}, {4}},
                                {"other", DType::kF16, "1", 1, 0, {1}, {1}}}),
               {{"0", EncodeElements(DType::kBf16, values)}, {"1", EncodeElements(DType::kF16, {-INFINITY})}});
  const auto checkpoint = Checkpoint::OpenBytes(file, "m.pth");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (int threads : {1, 3}) {
    EXPECT_THAT(*(*checkpoint)->Verify({.threads = threads}), ElementsAre("other", "strided", "with"));
  }
  const auto only = [](std::string_view wanted) { return [wanted](std::string_view name) { return name == wanted; }; };
  EXPECT_THAT(*(*checkpoint)->Verify({.tensors = only("other")}), ElementsAre("other"));
  EXPECT_THAT(*(*checkpoint)->Verify({.tensors = only("beside")}), ElementsAre("strided", "with")) << "in that storage";
}

// Whatever happens to a byte, opening and verifying end in an error or in tensors that can be read. What the sanitizers
// of the test run watch is that nothing else happens.
void ReadAll(const std::string& file, bool must_fail) {
  const auto checkpoint = Checkpoint::OpenBytes(file, "m");
  if (!checkpoint.ok()) {
    EXPECT_THAT(checkpoint.status().ToString(), HasSubstr("m: "));
    return;
  }
  double sum = 0;
  for (const CheckpointTensor& tensor : (*checkpoint)->tensors()) {
    for (float value : DecodeElements(tensor.data)) sum += std::isfinite(value) ? value : 0;
  }
  EXPECT_TRUE(std::isfinite(sum));
  EXPECT_FALSE((*checkpoint)->Verify({}).ok() && must_fail);
}

class DamageTest : public ::testing::TestWithParam<bool> {
 protected:
  const std::string file_ = GetParam() ? PthBytes(kTensors) : SafetensorsBytes(kTensors);
};

TEST_P(DamageTest, EveryTruncationIsAnError) {
  for (size_t size = 0; size < file_.size(); ++size) ReadAll(file_.substr(0, size), /*must_fail=*/true);
}

TEST_P(DamageTest, EveryFlippedBitIsSurvived) {
  for (size_t i = 0; i < file_.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = file_;
      damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
      ReadAll(damaged, /*must_fail=*/false);
    }
  }
}

TEST_P(DamageTest, EveryByteAtItsExtremesIsSurvived) {
  for (size_t i = 0; i < file_.size(); ++i) {
    for (size_t run : {1, 2, 4, 8}) {
      for (char value : {'\0', '\xff', '\x7f'}) {
        std::string damaged = file_;
        for (size_t k = i; k < std::min(i + run, file_.size()); ++k) damaged[k] = value;
        ReadAll(damaged, /*must_fail=*/false);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, DamageTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Pth" : "Safetensors"; });

// A weight that changed is always noticed in a .pth file, by its checksum.
TEST(CheckpointTest, FlippedWeightsOfPthAreFound) {
  const std::string file = PthBytes(kTensors);
  const auto checkpoint = Checkpoint::OpenBytes(file, "m");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const CheckpointTensor& tensor : (*checkpoint)->tensors()) {
    const size_t begin = static_cast<const char*>(tensor.data.data) - file.data();
    for (size_t i = begin; i < begin + tensor.data.bytes(); ++i) {
      std::string damaged = file;
      damaged[i] = static_cast<char>(damaged[i] ^ 4);
      ReadAll(damaged, /*must_fail=*/true);
    }
  }
}

// --- Quantized matrices ---------------------------------------------------------------------------------------------

std::string QuantizedError(const std::vector<RawTensor>& tensors, const std::string& metadata = kQuantizedMetadata) {
  return Checkpoint::OpenBytes(RawSafetensors(tensors, metadata), "memory").status().ToString();
}

TEST(CheckpointTest, QuantizedMatricesAreOneTensorEach) {
  const std::string file =
      RawSafetensors(QuantizedTensors(), std::string(kQuantizedMetadata) + ",\"goldfinch.source_fingerprint\":\"ab\"");
  const auto checkpoint = Checkpoint::OpenBytes(file, "memory");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ((*checkpoint)->tensors().size(), 5u);
  for (const auto& [name, dtype, in] : {std::tuple{"a", DType::kInt8, 32}, std::tuple{"b", DType::kInt4, 64}}) {
    const CheckpointTensor* by_input = (*checkpoint)->Find(name);
    ASSERT_NE(by_input, nullptr);
    EXPECT_TRUE(by_input->by_input);
    EXPECT_EQ(by_input->data.dtype, dtype);
    EXPECT_EQ(by_input->data.shape, (Shape{128, in}));
    EXPECT_EQ(by_input->data.bytes(), 4096);
  }
  const CheckpointTensor* head = (*checkpoint)->Find("head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->data.dtype, DType::kInt8);
  EXPECT_EQ(head->data.shape, (Shape{32, 32}));
  EXPECT_EQ(head->bytes(), 1024 + 128);
  EXPECT_EQ(DecodeElements(head->scales), std::vector<float>(32, 0.5f));
  const CheckpointTensor* key = (*checkpoint)->Find("key.weight");
  ASSERT_NE(key, nullptr);
  EXPECT_EQ(key->data.dtype, DType::kInt4);
  EXPECT_EQ(key->data.shape, (Shape{16, 64}));
  EXPECT_EQ(key->bytes(), 512 + 64);
  EXPECT_EQ(static_cast<const char*>(key->data.data)[511], '\x7A');
  EXPECT_FALSE(key->by_input);
  EXPECT_FALSE((*checkpoint)->Find("ln.weight")->scales);
  EXPECT_EQ((*checkpoint)->Metadata("goldfinch.source_fingerprint"), "ab");
  EXPECT_EQ((*checkpoint)->Metadata("none"), "");
  const auto non_finite = (*checkpoint)->Verify({});
  ASSERT_TRUE(non_finite.ok()) << non_finite.status();
  EXPECT_THAT(*non_finite, IsEmpty());
}

TEST(CheckpointTest, QuantizedMatricesInOtherLayouts) {
  EXPECT_THAT(QuantizedError(QuantizedTensors(), ""), AllOf(HasSubstr("'a.q8t'"), HasSubstr("no version")));
  EXPECT_THAT(QuantizedError(QuantizedTensors(), "\"goldfinch.quantised_version\":\"2\""),
              AllOf(HasSubstr("'a.q8t'"), HasSubstr("version '2'; readable is 1")));
  const auto with = [](size_t index, const RawTensor& tensor) {
    std::vector<RawTensor> tensors = QuantizedTensors();
    tensors[index] = tensor;
    return QuantizedError(tensors);
  };
  const std::string bytes(1024, 'x');
  EXPECT_THAT(
      with(0, {"head.weight.q9", "U8", "[2, 8, 16, 4]", bytes}),
      HasSubstr(
          "memory: tensor 'head.weight.q9' is of bytes, and its name does not end with .q8, .q4, .q8t or .q4t: "));
  for (const char* shape : {"[1024]", "[2, 8, 64]", "[2, 8, 32, 2]", "[2, 16, 16, 2]", "[4, 4, 16, 4]"}) {
    EXPECT_THAT(with(0, {"head.weight.q8", "U8", shape, bytes}),
                AllOf(HasSubstr("'head.weight.q8' is "), HasSubstr("expected [out / 16, in / 4, 16, 4]")))
        << shape;
  }
  for (const char* shape : {"[4096]", "[32, 128]", "[1, 64, 64]", "[1, 16, 256]", "[2, 16, 128]"}) {
    EXPECT_THAT(with(5, {"a.q8t", "U8", shape, std::string(4096, 'x')}),
                AllOf(HasSubstr("'a.q8t' is "), HasSubstr("expected [out / B, in, B] for")))
        << shape;
  }
  EXPECT_THAT(with(7, {"b.q4t", "U8", "[1, 128, 32]", std::string(4096, 'x')}),
              HasSubstr("expected [out / B, in, B / 2] for"));
  EXPECT_THAT(with(8, {"b.scales", "F16", "[2, 64]", std::string(256, 'x')}), HasSubstr("'b.q4t' has scales of f16"));
  EXPECT_THAT(with(1, {"head.weight", "F32", "[1]", EncodeElements(DType::kF32, {1})}),
              HasSubstr("'head.weight.q8' has no scales"));
  EXPECT_THAT(with(1, {"head.weight.scales", "F32", "[31]", EncodeElements(DType::kF32, std::vector<float>(31))}),
              HasSubstr("'head.weight.q8' has scales of f32 [31], expected f32 [32]"));
  EXPECT_THAT(with(3, {"key.weight.scales", "BF16", "[1, 2, 16]", std::string(64, 'x')}),
              HasSubstr("'key.weight.q4' has scales of bf16 [1, 2, 16], expected f16 [1, 2, 16]"));
  EXPECT_THAT(with(4, {"head.weight", "F32", "[2]", EncodeElements(DType::kF32, {1, 2})}), HasSubstr("is the same as"));
  EXPECT_THAT(with(2, {"head.weight.q4", "U8", "[2, 4, 16, 4]", std::string(512, 'x')}),
              HasSubstr("'head.weight.q4' has scales of f32 [32]"));
}

TEST(CheckpointTest, QuantizedFilesThatAreDamaged) {
  const std::string file = RawSafetensors(QuantizedTensors(), kQuantizedMetadata);
  for (size_t cut : {size_t{1}, size_t{100}, size_t{700}}) {
    const std::string message = Checkpoint::OpenBytes(file.substr(0, file.size() - cut), "memory").status().ToString();
    EXPECT_THAT(message, AllOf(HasSubstr("tensor '"), HasSubstr("cut short?"))) << cut;
  }
  for (size_t index : {1, 3}) {  // a scale that is no number
    std::vector<RawTensor> tensors = QuantizedTensors();
    tensors[index].bytes.replace(0, 4, "\xFF\xFF\xFF\x7F");
    const std::string broken = RawSafetensors(tensors, kQuantizedMetadata);
    const auto checkpoint = Checkpoint::OpenBytes(broken, "memory");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const std::string name = index == 1 ? "head.weight" : "key.weight";
    EXPECT_THAT(*(*checkpoint)->Verify({}), ElementsAre(name));
    VerifyOptions one_tensor;
    one_tensor.tensors = [&](std::string_view tensor) { return tensor == name; };
    EXPECT_THAT(*(*checkpoint)->Verify(one_tensor), ElementsAre(name));
    one_tensor.tensors = [](std::string_view tensor) { return tensor == "ln.weight"; };
    EXPECT_THAT(*(*checkpoint)->Verify(one_tensor), IsEmpty());
  }
}

}  // namespace
}  // namespace goldfinch
