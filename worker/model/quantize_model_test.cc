#include "worker/model/quantize_model.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "worker/checkpoint/fingerprint.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class QuantizeModelTest : public testing::Test {
 public:
  QuantizeModelTest() {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }

  absl::StatusOr<QuantizeReport> Quantize(const Checkpoint& checkpoint, const QuantizeOptions& options = {}) {
    return QuantizeModel(checkpoint, path, options);
  }
  std::shared_ptr<const Checkpoint> Open() const {
    absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(path);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }
  // Nothing but the file, if that.
  void ExpectFiles(int count) const {
    const std::filesystem::directory_iterator files(folder);
    EXPECT_EQ(std::distance(begin(files), end(files)), count);
  }

  const RandomModelSpec spec = {.layers = {"finch_c2", "gold"}, .width = 128, .vocab_size = 48, .hidden = 96};
  const std::vector<TestTensor> tensors = RandomModel(spec);
  const std::shared_ptr<const Checkpoint> checkpoint = OpenTensors(tensors);
  const std::string folder = testing::TempDir() + "/quantize_model_test";
  const std::string path = folder + "/model.safetensors";
};

TEST_F(QuantizeModelTest, LargeMatricesAndNoOthers) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const auto report = Quantize(*checkpoint, {.dtype = dtype, .overwrite = true, .threads = 3});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->unfit, IsEmpty());
    EXPECT_EQ(report->bytes, static_cast<int64_t>(std::filesystem::file_size(path)));
    ExpectFiles(1);
    const auto quantized = Open();
    ASSERT_EQ(quantized->tensors().size(), checkpoint->tensors().size());
    int64_t matrices = 0;
    for (const CheckpointTensor& source : checkpoint->tensors()) {
      SCOPED_TRACE(source.name);
      const CheckpointTensor* tensor = quantized->Find(source.name);
      ASSERT_NE(tensor, nullptr);
      EXPECT_EQ(tensor->data.shape, source.data.shape);
      if (!IsLargeMatrix(source)) {
        ASSERT_EQ(tensor->data.dtype, source.data.dtype);
        EXPECT_EQ(std::memcmp(tensor->data.data, source.data.data, source.data.bytes()), 0);
        continue;
      }
      ++matrices;
      ASSERT_EQ(tensor->data.dtype, dtype);
      // A mapped file begins at a page, so what is aligned in it is aligned in memory.
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data.data) % 64, 0u);
      EXPECT_EQ(tensor->by_input, source.name.ends_with("ffn.value.weight"));
      if (tensor->by_input) continue;  // other code of this file's makes those of panels
      const int64_t in = source.data.dim(1), panels = source.data.dim(0) / kPanelOut;
      const std::vector<float> weights = ToFloats(source.data);
      std::vector<uint8_t> panel(tensor->data.bytes() / panels);
      std::vector<char> scales(tensor->scales.bytes() / panels);
      for (int64_t i = 0; i < panels; ++i) {
        QuantizePanel(weights.data() + i * kPanelOut * in, in, dtype, panel.data(), scales.data());
        const auto size = static_cast<int64_t>(panel.size()), scale_size = static_cast<int64_t>(scales.size());
        ASSERT_EQ(std::memcmp(static_cast<const char*>(tensor->data.data) + i * size, panel.data(), size), 0);
        ASSERT_EQ(
            std::memcmp(static_cast<const char*>(tensor->scales.data) + i * scale_size, scales.data(), scale_size), 0);
      }
    }
    // Finch-C2: r, k, v, o; GOLD: q, o; three of each channel mix; the head.
    EXPECT_EQ(matrices, 4 + 2 + 2 * 3 + 1);
    EXPECT_EQ(report->matrices, matrices);
    EXPECT_EQ(quantized->Metadata(kQuantizedSourceKey), Fingerprint(*checkpoint));
    EXPECT_NE(Fingerprint(*quantized), Fingerprint(*checkpoint));
  }
}

TEST_F(QuantizeModelTest, KeepsWhatItIsTold) {
  const auto report = Quantize(*checkpoint, {.dtype = DType::kInt4, .keep = {"head.weight", "blocks.1.*.value.*"}});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->kept, ElementsAre("blocks.1.ffn.value.weight", "head.weight"));
  const auto quantized = Open();
  EXPECT_EQ(quantized->Find("head.weight")->data.dtype, DType::kBf16);
  EXPECT_EQ(quantized->Find("blocks.1.ffn.value.weight")->data.dtype, DType::kBf16);
  EXPECT_EQ(quantized->Find("blocks.0.ffn.value.weight")->data.dtype, DType::kInt4);
  const auto unknown = Quantize(*checkpoint, {.keep = {"head.weight", "blocks.7.*"}, .overwrite = true});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("no matrix of it has a name like blocks.7.*"));
}

TEST_F(QuantizeModelTest, SizesThatDoNotFitStay) {
  const auto odd = OpenTensors(RandomModel({.layers = {"finch"}, .vocab_size = 40, .hidden = 80}));
  const auto report = Quantize(*odd);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->unfit, ElementsAre("blocks.0.ffn.value.weight [64, 80]", "head.weight [40, 64]"));
  EXPECT_EQ(Open()->Find("head.weight")->data.dtype, DType::kBf16);
}

TEST_F(QuantizeModelTest, NothingIsOverwrittenUnasked) {
  ASSERT_TRUE(Quantize(*checkpoint).ok());
  const auto again = Quantize(*checkpoint, {.dtype = DType::kInt4});
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(again.status().message()), HasSubstr(path));
  EXPECT_EQ(Open()->Find("head.weight")->data.dtype, DType::kInt8);
  const auto twice = Quantize(*Open(), {.overwrite = true});
  EXPECT_THAT(std::string(twice.status().message()), HasSubstr("is quantized already, to int8"));
  ExpectFiles(1);
}

TEST_F(QuantizeModelTest, NanIsNamedAndLeavesNoFile) {
  for (float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<TestTensor> broken = tensors;
    for (TestTensor& tensor : broken) {
      if (tensor.name == "blocks.1.att.output.weight") tensor.values[300] = value;
    }
    const auto report = Quantize(*OpenTensors(broken));
    EXPECT_THAT(std::string(report.status().message()),
                AllOf(HasSubstr("tensor blocks.1.att.output.weight"), HasSubstr("NaN or infinite")));
    ExpectFiles(0);
  }
}

TEST_F(QuantizeModelTest, FoldersThatAreNotThere) {
  const auto report = QuantizeModel(*checkpoint, folder + "/none/model.safetensors", {});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(report.status().message()), HasSubstr(folder + "/none/model.safetensors"));
}

// --- Loading --------------------------------------------------------------------------------------------------------

class WithoutQuantizedProducts : public FakeDevice {
 public:
  using FakeDevice::FakeDevice;
  bool multiplies_quantized() const override { return false; }
};

TEST_F(QuantizeModelTest, DevicesThatCannotMultiplyRefuse) {
  ASSERT_TRUE(Quantize(*checkpoint).ok());
  WithoutQuantizedProducts device(MakeCpuBackend(1));
  const absl::Status status = LoadModel(device, Open(), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr(path), HasSubstr("quantized to int8, which fake does not multiply"), HasSubstr("device cpu")));
}

TEST_F(QuantizeModelTest, MemoryIsPlannedByTheBytesAsTheyAre) {
  ASSERT_TRUE(Quantize(*checkpoint).ok());
  const auto whole = MeasureModel(*checkpoint, {}, /*in_place=*/true);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto quantized = MeasureModel(*Open(), {}, /*in_place=*/true);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  int64_t saved = 0;
  for (size_t i = 0; i < (*whole)->bytes.layers.size(); ++i) {
    saved += (*whole)->bytes.layers[i] - (*quantized)->bytes.layers[i];
  }
  int64_t expected = 0;
  for (const CheckpointTensor& tensor : checkpoint->tensors()) {
    if (!tensor.name.starts_with("blocks.") || !IsLargeMatrix(tensor)) continue;
    expected += tensor.data.bytes() - (tensor.data.shape.elements() + 4 * tensor.data.dim(0));
  }
  EXPECT_GT(expected, 0);
  EXPECT_EQ(saved, expected);
}

}  // namespace
}  // namespace goldfinch
