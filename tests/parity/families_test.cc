// What the golden cases lack: every version, ablation, size, weight type and naming that released checkpoints have,
// with random weights, against the plain model.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/pipeline.h"
#include "tests/parity/reference_model.h"
#include "tests/parity/reference_weights.h"
#include "tests/parity/test_device.h"
#include "worker/checkpoint/checkpoint_test_util.h"
#include "worker/model/model_config.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

enum class File { kPth, kSafetensors };
enum class Names { kAuthors, kSecond };

struct Family {
  std::string name;
  RandomModelSpec model;
  // What goes into a config file, and under which name it stands.
  std::string config = {};
  std::string config_name = "config.json";
  ReferenceConfig reference = {};
  File file = File::kPth;
  Names names = Names::kAuthors;
  int64_t tokens = 70;  // more than a page of the caches
};
void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

std::vector<std::string> Layers(int first, const char* kind, int second = 0, const char* kind2 = "") {
  std::vector<std::string> layers(first, kind);
  layers.insert(layers.end(), second, kind2);
  return layers;
}

std::vector<Family> Families() {
  return {
      {.name = "eagle_5_0", .model = {.layers = Layers(2, "eagle"), .width = 192, .eagle_minor = 0}},
      {.name = "eagle_5_1", .model = {.layers = Layers(2, "eagle"), .width = 192, .eagle_minor = 1}},
      {.name = "eagle_5_2", .model = {.layers = Layers(2, "eagle"), .width = 192, .eagle_minor = 2}},
      // The head size of 5.0 shows only in the number of decays.
      {.name = "eagle_5_0_heads_of_32",
       .model = {.layers = Layers(2, "eagle"), .width = 96, .head_size = 32, .eagle_minor = 0},
       .reference = {.head_size = 32}},
      {.name = "eagle_second_names",
       .model = {.layers = Layers(2, "eagle"), .width = 128},
       .file = File::kSafetensors,
       .names = Names::kSecond},
      {.name = "eagle_tuned_state", .model = {.layers = Layers(2, "eagle"), .width = 128, .time_state = true}},
      {.name = "finch", .model = {.layers = Layers(3, "finch"), .width = 128, .hidden = 448}},
      {.name = "finch_second_names",
       .model = {.layers = Layers(2, "finch"), .width = 128},
       .file = File::kSafetensors,
       .names = Names::kSecond},
      {.name = "finch_tuned_state", .model = {.layers = Layers(2, "finch"), .width = 128, .time_state = true}},
      {.name = "finch_ranks_64_128",
       .model = {.layers = Layers(2, "finch"), .width = 128, .mix_rank = 64, .lora_rank = 128}},
      {.name = "finch_ranks_16_16",
       .model = {.layers = Layers(2, "finch"), .width = 128, .mix_rank = 16, .lora_rank = 16}},
      {.name = "finch_odd_ranks", .model = {.layers = Layers(2, "finch"), .width = 128, .mix_rank = 3, .lora_rank = 7}},
      {.name = "finch_odd_hidden_width", .model = {.layers = Layers(2, "finch"), .width = 64, .hidden = 223}},
      {.name = "finch_fp16", .model = {.layers = Layers(2, "finch"), .width = 128, .dtype = DType::kF16}},
      {.name = "finch_fp32", .model = {.layers = Layers(2, "finch"), .width = 128, .dtype = DType::kF32}},
      {.name = "finch_c2_all", .model = {.layers = Layers(4, "finch_c2"), .width = 128}},
      {.name = "finch_c2_use_v2_0",
       .model = {.layers = Layers(2, "finch_c2"), .width = 128},
       .config = R"({"use_v2": 0})",
       .reference = {.use_v2 = false}},
      {.name = "finch_c2_use_v2_false",
       .model = {.layers = Layers(2, "finch_c2"), .width = 128},
       .config = R"({"use_v2": false})",
       .reference = {.use_v2 = false}},
      {.name = "finch_c2_without_v2_tensors",
       .model = {.layers = Layers(2, "finch_c2"), .width = 128, .value2 = false}},
      {.name = "finch_c2_use_one_minus_w_0",
       .model = {.layers = Layers(2, "finch_c2"), .width = 128},
       .config = R"({"use_one_minus_w": 0})",
       .reference = {.use_one_minus_w = false}},
      {.name = "finch_c2_neither",
       .model = {.layers = Layers(2, "finch_c2"), .width = 128, .value2 = false},
       .config = R"({"use_v2": 0, "use_one_minus_w": 0})",
       .reference = {.use_v2 = false, .use_one_minus_w = false}},
      {.name = "finch_c2_tuned_state", .model = {.layers = Layers(2, "finch_c2"), .width = 128, .time_state = true}},
      {.name = "goldfinch_ratio_2", .model = {.layers = Layers(2, "finch_c2", 2, "gold"), .width = 128}},
      {.name = "goldfinch_ratio_3", .model = {.layers = Layers(4, "finch_c2", 2, "gold"), .width = 128}},
      {.name = "goldfinch_ratio_6", .model = {.layers = Layers(5, "finch_c2", 1, "gold"), .width = 128}},
      {.name = "goldfinch_rope",
       .model = {.layers = Layers(2, "finch_c2", 2, "gold"), .width = 128},
       .config = R"({"rope_base": 10000})",
       .reference = {.rope_base = 10000}},
      {.name = "goldfinch_yaml",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128},
       .config = "model:\n  tmix: x060c2\n  tmix2: gold\n  n_layer: 3\n  n_embd: 128\n  use_one_minus_w: 0\n"
                 "  rope:\n    base: 500000.0\ntrain:\n  lr_init: 3e-4\n",
       .config_name = "config.yaml",
       .reference = {.rope_base = 500000, .use_one_minus_w = false}},
      {.name = "goldfinch_heads_of_32",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 96, .head_size = 32},
       .config = R"({"head_size": 32})",
       .reference = {.head_size = 32}},
      {.name = "goldfinch_ranks_64_128",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128, .mix_rank = 64, .lora_rank = 128}},
      {.name = "goldfinch_fp16",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128, .dtype = DType::kF16}},
      {.name = "goldfinch_fp32",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128, .dtype = DType::kF32}},
      {.name = "goldfinch_safetensors",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128},
       .file = File::kSafetensors},
      {.name = "goldfinch_tuned_state",
       .model = {.layers = Layers(2, "finch_c2", 1, "gold"), .width = 128, .time_state = true}},
      // Ids take 4 bytes in the compressed cache.
      {.name = "goldfinch_large_vocabulary",
       .model = {.layers = Layers(1, "finch_c2", 1, "gold"), .vocab_size = 65600, .head_size = 32},
       .config = R"({"head_size": 32})",
       .reference = {.head_size = 32},
       .tokens = 12},
      {.name = "finch_gold", .model = {.layers = Layers(2, "finch", 1, "gold"), .width = 128}},
      {.name = "eagle_gold", .model = {.layers = Layers(2, "eagle", 2, "gold"), .width = 128}},
      {.name = "gptalpha_without_rope", .model = {.layers = Layers(2, "gptalpha"), .width = 128}},
      {.name = "gptalpha_heads_of_32",
       .model = {.layers = Layers(2, "gptalpha"), .width = 96, .head_size = 32},
       .config = R"({"head_size": 32, "rope_base": 10000})",
       .reference = {.head_size = 32, .rope_base = 10000}},
      {.name = "finch_c2_gptalpha_rope",
       .model = {.layers = Layers(2, "finch_c2", 1, "gptalpha"), .width = 128},
       .config = R"({"rope_base": 10000})",
       .reference = {.rope_base = 10000}},
      // A KV cache and a compressed cache beside each other.
      {.name = "gptalpha_gold", .model = {.layers = Layers(2, "gptalpha", 1, "gold"), .width = 128}},
      {.name = "llama_by_default_with_rope",
       .model = {.layers = Layers(2, "llama"), .width = 128},
       .reference = {.rope_base = 10000}},
      {.name = "llama_without_rope",
       .model = {.layers = Layers(2, "llama"), .width = 128},
       .config = R"({"rope_base": 0})"},
      {.name = "llama_finch",
       .model = {.layers = Layers(1, "llama", 1, "finch"), .width = 128},
       .reference = {.rope_base = 10000}},
  };
}

class FamiliesTest : public testing::TestWithParam<Family> {
 public:
  void SetUp() override { GOLDFINCH_SKIP_WITHOUT_DEVICE(); }
};

std::string FileBytes(const Family& family) {
  std::vector<TestTensor> tensors = RandomModel(family.model);
  if (family.names == Names::kSecond) tensors = WithSecondNames(std::move(tensors));
  return family.file == File::kSafetensors ? SafetensorsBytes(tensors) : PthBytes(tensors);
}

TEST_P(FamiliesTest, AgreesWithThePlainModel) {
  const Family& family = GetParam();
  ModelConfig config;
  if (!family.config.empty()) {
    const std::string path = absl::StrCat(testing::TempDir(), "/", family.name, "_", family.config_name);
    ASSERT_TRUE(WriteFile(path, family.config).ok());
    const absl::StatusOr<ModelConfig> read = ReadModelConfig(path);
    ASSERT_TRUE(read.ok()) << read.status();
    config = *read;
  }
  const std::shared_ptr<const Checkpoint> checkpoint = OpenFileBytes(FileBytes(family));
  const std::vector<int32_t> tokens = RandomTokens(family.tokens, family.model.vocab_size, /*seed=*/2);
  const ReferenceOutput expected = RunReference(ReadReferenceWeights(*checkpoint), family.reference, tokens);

  const double tolerance = GetTestDevice().tolerance;
  Pipeline pipeline(*GetTestDevice().backend, checkpoint, config,
                    {.cache_tokens = 100, .max_step_tokens = 80, .max_logit_rows = 80, .cache_dtype = DType::kF32});
  const std::vector<float> logits = pipeline.AllLogits(tokens, family.tokens);
  const double error = RelativeError(logits, expected.logits);
  EXPECT_LE(error, tolerance);
  std::printf("%-24s relative error %.2g, the limit is %.2g\n", family.name.c_str(), error, tolerance);
  RecordProperty("relative_error_f32_cache", absl::StrCat(error));
  if (!expected.compressed.empty()) {
    EXPECT_LE(RelativeError(pipeline.compressed(), expected.compressed), tolerance);
  }

  EXPECT_TRUE(Same(pipeline.AllLogits(tokens, 9), logits)) << "in chunks";
  const int slot = pipeline.Open();
  const std::vector<float> last(logits.end() - pipeline.vocab(), logits.end());
  EXPECT_TRUE(Same(pipeline.Forward({slot, tokens, 1}), last)) << "last logits only";
}

INSTANTIATE_TEST_SUITE_P(Random, FamiliesTest, testing::ValuesIn(Families()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace goldfinch
