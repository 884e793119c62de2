#include "worker/model/model.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint_test_util.h"
#include "worker/model/fake_device.h"
#include "worker/model/random_model.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

using Tensors = std::vector<TestTensor>;

Backend& Cpu() {
  static Backend* const backend = MakeCpuBackend(/*threads=*/1).release();
  return *backend;
}

// The loader reads only sizes and names, so models here can be tiny.
Tensors Small(const std::vector<std::string>& layers) {
  return RandomModel(
      {.layers = layers, .width = 32, .vocab_size = 8, .hidden = 16, .head_size = 16, .mix_rank = 2, .lora_rank = 3});
}
// Some kinds do not show their head size.
const ModelConfig kHeadsOf16 = {.head_size = 16};

absl::StatusOr<std::shared_ptr<const Model>> Load(const Tensors& tensors, const ModelConfig& config = kHeadsOf16,
                                                  int first_layer = 0, int last_layer = -1) {
  return LoadModel(Cpu(), OpenTensors(tensors), config, first_layer, last_layer);
}

TestTensor& Find(Tensors& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const TestTensor& t) { return t.name == name; });
  EXPECT_NE(found, tensors.end()) << name;
  return *found;
}
void Remove(Tensors& tensors, const std::string& name) {
  Find(tensors, name);
  std::erase_if(tensors, [&](const TestTensor& t) { return t.name == name; });
}
void Reshape(TestTensor& tensor, const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (int64_t dim : shape) elements *= dim;
  tensor.shape = shape;
  tensor.values.resize(elements);
}

std::string ErrorOf(const Tensors& tensors, const ModelConfig& config = kHeadsOf16) {
  const absl::Status status = Load(tensors, config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("test.pth: "));
  return status.ToString();
}

// ---- Good models.

TEST(ModelTest, ShapeOfAMixedModel) {
  const auto model = Load(Small({"finch_c2", "finch", "gold"}));
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelShape& shape = (*model)->shape;
  EXPECT_EQ(shape.width, 32);
  EXPECT_EQ(shape.vocab_size, 8);
  EXPECT_EQ(shape.head_size, 16);
  EXPECT_EQ(shape.heads(), 2);
  EXPECT_EQ(shape.compressed, 2);
  EXPECT_EQ(shape.layers(), 3);
  EXPECT_EQ(shape.finch_layers(), 2);
  EXPECT_EQ(shape.gold_layers(), 1);
  EXPECT_STREQ(shape.kinds[0]->name, "finch_c2");
  EXPECT_STREQ(shape.kinds[1]->name, "finch");
  EXPECT_STREQ(shape.kinds[2]->name, "gold");
  EXPECT_TRUE((*model)->extent().has_boundary());
  EXPECT_TRUE((*model)->extent().has_gold());
  EXPECT_TRUE((*model)->extent().is_last());
}

TEST(ModelTest, KindsAreSeenInTheTensors) {
  for (const TimeMixKind& kind : TimeMixKinds()) {
    std::vector<std::string> layers = {kind.name};
    if (kind.reads_gold_cache) layers.insert(layers.begin(), "finch");
    const auto model = Load(Small(layers));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_STREQ((*model)->shape.kinds.back()->name, kind.name);
  }
}

// The figures that the papers and the README give, for L24 D2048.
TEST(ModelTest, BytesOfTheReleasedModel) {
  ModelShape shape{
      .width = 2048, .vocab_size = 65536, .head_size = 64, .compressed = 128, .kinds = {}, .channel_kinds = {}};
  const auto kind = [](const std::string& name) {
    return &*std::find_if(TimeMixKinds().begin(), TimeMixKinds().end(), [&](const auto& k) { return k.name == name; });
  };
  const auto channel_kind = [](const std::string& name) {
    return &*std::find_if(ChannelMixKinds().begin(), ChannelMixKinds().end(),
                          [&](const auto& k) { return k.name == name; });
  };
  for (int layer = 0; layer < 24; ++layer) shape.kinds.push_back(kind(layer < 16 ? "finch_c2" : "gold"));
  shape.channel_kinds.assign(24, channel_kind("rwkv"));
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kBf16), 258);
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kF32), 514);
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kInt8), 132) << "one scale a row";
  EXPECT_EQ(shape.TransformerBytesPerToken(), 196608);
  // WKV states, two shift rows a layer, the newest 2G rows.
  EXPECT_EQ(shape.StateBytes(), 4 * (16 * 2048 * 64 + 24 * 2 * 2048 + 16 * 2048));
  shape.vocab_size = 65537;
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kBf16), 260) << "ids of 4 bytes";
  shape.kinds.assign(24, kind("llama"));
  shape.channel_kinds.assign(24, channel_kind("llama"));
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kBf16), 196608);
  EXPECT_EQ(shape.StateBytes(), 0);
}

TEST(ModelTest, KeysAndValuesHaveNo8BitForm) {
  EXPECT_EQ(ParseCacheDType("int8"), DType::kInt8);
  EXPECT_EQ(ParseCacheDType("bf16"), DType::kBf16);
  EXPECT_EQ(ParseCacheDType("i8"), std::nullopt);
  EXPECT_EQ(ParseCacheDType("int4"), std::nullopt);
  const auto check = [](const std::vector<std::string>& layers, DType dtype) {
    const auto checkpoint = OpenTensors(RandomModel({.layers = layers}));
    return CheckCacheDType(*checkpoint, *ReadModelShape(*checkpoint, {}), dtype);
  };
  for (const std::vector<std::string>& layers :
       {std::vector<std::string>{"finch_c2", "gold"}, {"finch", "gold"}, {"finch"}, {"eagle"}}) {
    EXPECT_TRUE(check(layers, DType::kInt8).ok()) << layers.back();
  }
  for (const std::string kind : {"gptalpha", "llama"}) {
    const absl::Status status = check({"finch_c2", kind, "gold"}, DType::kInt8);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    for (const std::string& words :
         {std::string("cache_dtype is int8"), "layer 1 (" + kind + ")", std::string("bf16")}) {
      EXPECT_THAT(std::string(status.message()), testing::HasSubstr(words));
    }
    EXPECT_TRUE(check({"finch_c2", kind, "gold"}, DType::kBf16).ok());
  }
}

TEST(ModelTest, PartsOfAModelLoadOnlyWhatTheyNeed) {
  const Tensors tensors = Small({"finch", "finch", "gold", "gold"});
  const auto part = [&](int first, int last) {
    auto model = Load(tensors, kHeadsOf16, first, last);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  };
  const auto first = part(0, 1);
  EXPECT_EQ(first->layers.size(), 1u);
  EXPECT_TRUE(first->embedding);
  EXPECT_FALSE(first->compress);
  EXPECT_FALSE(first->head);
  const auto second = part(1, 2);
  EXPECT_FALSE(second->embedding);
  EXPECT_TRUE(second->compress);
  EXPECT_FALSE(second->key_x0);
  EXPECT_TRUE(second->extent().has_boundary());
  EXPECT_FALSE(second->extent().has_gold());
  const auto third = part(2, 3);
  EXPECT_TRUE(third->embedding) << "values come from the embedding";
  EXPECT_FALSE(third->compress);
  EXPECT_TRUE(third->key_x0);
  EXPECT_FALSE(third->head);
  EXPECT_FALSE(third->extent().has_boundary());
  const auto last = part(3, -1);
  EXPECT_EQ(last->first_layer, 3);
  EXPECT_EQ(last->last_layer, 4);
  EXPECT_TRUE(last->head);
}

TEST(ModelTest, LayersThatAreNotThere) {
  for (const auto& [first, last] : std::vector<std::pair<int, int>>{{2, -1}, {0, 3}, {1, 1}, {-1, 1}, {1, 0}}) {
    const absl::Status status = Load(Small({"finch", "finch"}), kHeadsOf16, first, last).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("not a range within the 2 layers"), HasSubstr("test.pth")));
  }
}

// The files' own tensors must not be needed any more once a device has copies.
TEST(ModelTest, ADeviceHasItsOwnCopyOfEveryWeight) {
  const Tensors tensors = Small({"eagle", "finch", "finch_c2", "gptalpha", "llama", "gold"});
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7};
  const auto logits = [&](Backend& backend, const std::function<void(std::string&)>& after_load) {
    std::string file = PthBytes(tensors);
    auto checkpoint = Checkpoint::OpenBytes(file, "test.pth");
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto model = LoadModel(backend, *std::move(checkpoint), kHeadsOf16);
    EXPECT_TRUE(model.ok()) << model.status();
    after_load(file);
    auto stage = Stage::Create(backend, *model, {.max_step_tokens = 10, .max_logit_rows = 10});
    StageOutput output;
    const Chunk chunk = {*(*stage)->Open(), ids, 7};
    EXPECT_TRUE((*stage)->Forward({&chunk, 1}, {}, &output).ok());
    std::vector<float> values(output.logits.shape.elements());
    backend.CopyToHost(output.logits, values.data());
    return values;
  };
  const std::vector<float> expected = logits(Cpu(), [](std::string&) {});
  FakeDevice device(Cpu());
  EXPECT_EQ(logits(device, [](std::string& file) { std::memset(file.data(), 0xFF, file.size()); }), expected);
}

// One allocation holds all that is copied.
TEST(ModelTest, MemoryThatCannotBeHad) {
  FakeDevice device(Cpu());
  const std::shared_ptr<const Checkpoint> checkpoint = OpenTensors(Small({"finch_c2", "gold"}));
  device.set_allocations_left(0);
  const absl::Status status = LoadModel(device, checkpoint, kHeadsOf16).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("weights"));
  device.set_allocations_left(1);
  EXPECT_TRUE(LoadModel(device, checkpoint, kHeadsOf16).ok());
}

TEST(ModelTest, WhatIsMeasuredIsWhatIsLoaded) {
  const auto checkpoint = OpenTensors(Small({"eagle", "finch", "finch_c2", "gptalpha", "llama", "gold", "gold"}));
  FakeDevice device(Cpu());
  const auto measured = MeasureModel(*checkpoint, kHeadsOf16, /*in_place=*/false);
  ASSERT_TRUE(measured.ok()) << measured.status();
  const WeightBytes& all = (*measured)->bytes;
  EXPECT_GE(all.total(), checkpoint->file_bytes() / 2);
  ASSERT_EQ(all.layers.size(), 7u);
  EXPECT_EQ(all.layers[5], all.layers[6]);
  for (int first = 0; first < 7; ++first) {
    for (int last = first + 1; last <= 7; ++last) {
      const auto loaded = LoadModel(device, checkpoint, kHeadsOf16, first, last);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      const WeightBytes& bytes = (*loaded)->bytes;
      for (int layer = 0; layer < 7; ++layer) {
        // W_a goes with the last Finch-side layer, even if no stage after it is this one.
        const int64_t expected = layer >= first && layer < last ? all.layers[layer] : 0;
        EXPECT_EQ(bytes.layers[layer], expected) << "layer " << layer << " of " << first << " to " << last;
      }
      EXPECT_EQ(bytes.embedding, first == 0 || last > 5 ? all.embedding : 0);
      EXPECT_EQ(bytes.gold_shared, last > 5 ? all.gold_shared : 0);
      EXPECT_EQ(bytes.head, last == 7 ? all.head : 0);
    }
  }
  // In place, matrices are as the file has them; what is measured of bad models is an error as well.
  const auto in_place = MeasureModel(*checkpoint, kHeadsOf16, /*in_place=*/true);
  ASSERT_TRUE(in_place.ok());
  EXPECT_LE((*in_place)->bytes.total(), all.total());
  Tensors missing = Small({"finch_c2"});
  Remove(missing, "blocks.0.att.key.weight");
  EXPECT_THAT(std::string(MeasureModel(*OpenTensors(missing), kHeadsOf16, false).status().message()),
              HasSubstr("blocks.0.att.key.weight is missing"));
}

// ---- Bad tensors.

const std::vector<std::vector<std::string>> kModels = {
    {"eagle"}, {"finch"}, {"finch_c2", "gold"}, {"gptalpha"}, {"llama"}};

TEST(ModelTest, EveryMissingTensorIsNamed) {
  for (const std::vector<std::string>& layers : kModels) {
    const Tensors whole = Small(layers);
    for (const TestTensor& tensor : whole) {
      SCOPED_TRACE(tensor.name + " of " + testing::PrintToString(layers));
      if (layers[0] == "finch_c2" && tensor.name == "blocks.0.att.time_faaaa") continue;  // in the files, but unused
      Tensors tensors = whole;
      Remove(tensors, tensor.name);
      // Where the kind of a layer is seen by the tensor, another one is missing or too many then: of the same layer.
      const std::string mixer = tensor.name.substr(0, tensor.name.rfind("att.") + 4);
      EXPECT_THAT(ErrorOf(tensors), AnyOf(HasSubstr(tensor.name), HasSubstr(mixer)));
    }
  }
}

TEST(ModelTest, EveryTensorOfAWrongShapeIsNamed) {
  for (const std::vector<std::string>& layers : kModels) {
    const Tensors whole = Small(layers);
    for (const TestTensor& tensor : whole) {
      if (layers[0] == "finch_c2" && tensor.name == "blocks.0.att.time_faaaa") continue;
      for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        std::vector<int64_t> shape = tensor.shape;
        shape[axis] += 1;
        SCOPED_TRACE(tensor.name + " as " + testing::PrintToString(shape) + " in " + testing::PrintToString(layers));
        Tensors tensors = whole;
        Reshape(Find(tensors, tensor.name), shape);
        const std::string error = ErrorOf(tensors);
        // Sizes that are read from one tensor show in another that contradicts it.
        const bool tells_a_size =
            tensor.name == "emb.weight" || tensor.name.find("_w1") != std::string::npos ||
            tensor.name.find("_w2") != std::string::npos || tensor.name.find("ffn.") != std::string::npos ||
            tensor.name.find("w_kv_cache") != std::string::npos ||
            tensor.name.find("time_faaaa") != std::string::npos || tensor.name.find("time_decay") != std::string::npos;
        if (!tells_a_size) {
          EXPECT_THAT(error, HasSubstr("tensor " + tensor.name + " is ["));
        }
        EXPECT_THAT(error, AnyOf(HasSubstr("expected"), HasSubstr("the config says")));
      }
    }
  }
}

TEST(ModelTest, ExtraTensors) {
  for (const char* name : {"extra", "blocks.0.extra", "blocks.0.att.time_maa_z", "blocks.1.ffn.w1", "head.bias",
                           "blocks.1.ln0.weight", "w_kv_cache_a.weight", "blocks.0.att.time_state2"}) {
    Tensors tensors = Small({"finch", "finch"});
    tensors.push_back({name, DType::kF32, {32}, std::vector<float>(32)});
    EXPECT_THAT(ErrorOf(tensors), AllOf(HasSubstr(name), HasSubstr("belongs to no layer")));
  }
}

TEST(ModelTest, LayerNumbers) {
  for (const char* name : {"blocks.x.ln1.weight", "blocks.-1.ln1.weight", "blocks.1000.ln1.weight",
                           "blocks.99999999999.ln1.weight", "blocks.1", "blocks..ln1.weight"}) {
    Tensors tensors = Small({"finch"});
    tensors.push_back({name, DType::kF32, {32}, std::vector<float>(32)});
    EXPECT_THAT(ErrorOf(tensors), AllOf(HasSubstr(name), HasSubstr("names no layer from 0 to 999")));
  }
}

TEST(ModelTest, AGapBetweenTheLayers) {
  Tensors tensors = Small({"finch", "finch", "finch"});
  std::erase_if(tensors, [](const TestTensor& tensor) { return tensor.name.starts_with("blocks.1."); });
  EXPECT_THAT(ErrorOf(tensors), AllOf(HasSubstr("layer 1"), HasSubstr("blocks.1.att."), HasSubstr("no known kind")));
}

TEST(ModelTest, NotAModel) {
  EXPECT_THAT(ErrorOf({{"weight", DType::kF32, {2}, {1, 2}}}), HasSubstr("emb.weight is missing"));
  EXPECT_THAT(ErrorOf({{"emb.weight", DType::kF32, {2}, {1, 2}}}),
              HasSubstr("emb.weight is [2], expected [vocab, width]"));
  EXPECT_THAT(ErrorOf({{"emb.weight", DType::kF32, {2, 1}, {1, 2}}}), HasSubstr("no tensor named blocks.0.*"));
}

TEST(ModelTest, OrderOfTheLayers) {
  EXPECT_THAT(ErrorOf(Small({"finch", "gold", "finch"})),
              AllOf(HasSubstr("layer 2 is finch after the gold layer 1"), HasSubstr("must be the last")));
  EXPECT_THAT(ErrorOf(Small({"gold", "gold"})), HasSubstr("the first layer is gold"));
}

TEST(ModelTest, HeadsThatDoNotFit) {
  // Rounded to whole heads, the bonus would still have the right number of elements.
  Tensors tensors = Small({"finch"});
  Reshape(Find(tensors, "blocks.0.att.time_faaaa"), {4, 8});
  EXPECT_THAT(ErrorOf(tensors, {}), AllOf(HasSubstr("heads of 8 channels"), HasSubstr("multiple of 16")));
  tensors = Small({"llama"});
  EXPECT_THAT(ErrorOf(tensors, {}), AllOf(HasSubstr("heads of 64 channels"), HasSubstr("width of 32")));
  EXPECT_THAT(ErrorOf(tensors, {.head_size = 48}), HasSubstr("heads of 48 channels"));
}

TEST(ModelTest, LayersThatDisagreeAboutHeads) {
  Tensors tensors = Small({"finch", "finch"});
  Reshape(Find(tensors, "blocks.1.att.time_faaaa"), {1, 32});
  EXPECT_THAT(ErrorOf(tensors, {}),
              AllOf(HasSubstr("blocks.1.att.time_faaaa is [1, 32]"), HasSubstr("expected [2, 16]")));
}

// Half of Finch-C2's v2 is damage; none of it is an ablation, and so is a config that turns it off.
TEST(ModelTest, HalfOfV2) {
  const std::vector<std::string> names = {"time_maa_v2", "time_value2_w1", "time_value2_w2"};
  for (const std::string& missing : names) {
    Tensors tensors = Small({"finch_c2"});
    Remove(tensors, "blocks.0.att." + missing);
    // As if the file were of four shift targets.
    Reshape(Find(tensors, "blocks.0.att.time_maa_w1"), {32, missing == "time_maa_v2" ? 8 : 10});
    Reshape(Find(tensors, "blocks.0.att.time_maa_w2"), {missing == "time_maa_v2" ? 4 : 5, 2, 32});
    EXPECT_THAT(ErrorOf(tensors), HasSubstr("blocks.0.att." + missing + " is missing"));
    EXPECT_TRUE(Load(tensors, {.use_v2 = false}).ok());
  }
  Tensors tensors = Small({"finch_c2"});
  Remove(tensors, "blocks.0.att.time_value2_w1");
  Remove(tensors, "blocks.0.att.time_value2_w2");
  EXPECT_THAT(ErrorOf(tensors), HasSubstr("time_value2_w1 is missing"));
  EXPECT_TRUE(Load(tensors, {.use_v2 = false}).ok());
}

TEST(ModelTest, ATunedStateOfOtherHeads) {
  Tensors tensors = Small({"finch"});
  tensors.push_back({"blocks.0.att.time_state", DType::kF32, {2, 16, 15}, std::vector<float>(480)});
  EXPECT_THAT(ErrorOf(tensors), AllOf(HasSubstr("blocks.0.att.time_state is [2, 16, 15]"), HasSubstr("expected")));
}

// ---- Configs that contradict the tensors.

TEST(ModelTest, ConfigsThatContradictTheTensors) {
  const Tensors tensors = Small({"finch", "finch"});
  EXPECT_THAT(ErrorOf(tensors, {.layers = 3}), HasSubstr("the config says n_layer is 3, the tensors say 2"));
  EXPECT_THAT(ErrorOf(tensors, {.width = 64}), HasSubstr("the config says n_embd is 64, the tensors say 32"));
  EXPECT_THAT(ErrorOf(tensors, {.vocab_size = 9}), HasSubstr("the config says vocab_size is 9, the tensors say 8"));
  EXPECT_THAT(ErrorOf(tensors, {.head_size = 32}), HasSubstr("the config says head_size is 32, the tensors say 16"));
  EXPECT_THAT(ErrorOf(tensors, {.tmix = "x060c2"}),
              HasSubstr("the config says tmix is x060c2, the tensors are of x060"));
  EXPECT_THAT(ErrorOf(tensors, {.tmix = "x060", .tmix2 = "gold"}), HasSubstr("the config says tmix2 is gold"));
  EXPECT_TRUE(Load(tensors, {.tmix = "a kind to come"}).ok());
  EXPECT_TRUE(Load(Small({"finch", "gold"}), {.head_size = 16, .tmix = "x060", .tmix2 = "gold"}).ok());
  EXPECT_TRUE(Load(tensors, {.head_size = 16, .layers = 2, .width = 32, .vocab_size = 8}).ok());
}

}  // namespace
}  // namespace goldfinch
