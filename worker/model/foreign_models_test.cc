#include "worker/model/foreign_models.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string MessageOf(const std::vector<std::string>& names) {
  std::vector<TestTensor> tensors;
  for (const std::string& name : names) tensors.push_back({name, DType::kF32, {1}, {0}});
  return std::string(ReadModelShape(*OpenTensors(tensors), {}).status().message());
}

TEST(ForeignModelsTest, TheMessageSaysWhatTheFileIs) {
  const std::vector<std::string> shared = {"emb.weight", "head.weight", "blocks.0.att.key.weight"};
  const auto with = [&](std::vector<std::string> names) {
    names.insert(names.end(), shared.begin(), shared.end());
    return names;
  };
  EXPECT_THAT(MessageOf(with({"blocks.0.att.time_decay", "blocks.0.att.time_first", "blocks.0.att.time_mix_k"})),
              HasSubstr(": is an RWKV-4 model, which this version does not compute: take a Finch"));
  EXPECT_THAT(MessageOf({"rwkv.embeddings.weight", "rwkv.blocks.0.attention.time_first",
                         "rwkv.blocks.0.attention.time_mix_key"}),
              HasSubstr("is an RWKV-4 model"));
  EXPECT_THAT(MessageOf(with({"blocks.0.att.r_k", "blocks.0.att.k_k", "blocks.0.att.k_a"})),
              HasSubstr(": is an RWKV-7 (Goose) model"));
  EXPECT_THAT(MessageOf({"model.layers.0.attn.r_k", "model.layers.0.attn.k_k", "model.layers.0.attn.k_a"}),
              HasSubstr(": is an RWKV-7 (Goose) model"));
  EXPECT_THAT(MessageOf({"blocks.0.att.time_state", "blocks.1.att.time_state"}),
              AllOf(HasSubstr("holds a tuned initial state"), HasSubstr("use it as a context")));
  EXPECT_THAT(MessageOf({"base_model.blocks.0.att.key.lora_A.weight", "base_model.blocks.0.att.key.lora_B.weight"}),
              HasSubstr("holds LoRA adapters and no model: merge them"));
  EXPECT_THAT(MessageOf({"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"}),
              HasSubstr("is a transformer with the tensor names of Hugging Face"));
}

TEST(ForeignModelsTest, NoKindOfOurOwnIsForeign) {
  for (const char* kind : {"gold", "gptalpha", "finch", "finch_c2", "eagle", "llama"}) {
    std::vector<std::string> layers = {kind};
    if (std::string(kind) == "gold") layers = {"finch", "gold"};
    const auto checkpoint = OpenTensors(RandomModel({.layers = layers,
                                                     .width = 32,
                                                     .vocab_size = 8,
                                                     .hidden = 16,
                                                     .head_size = 16,
                                                     .mix_rank = 2,
                                                     .lora_rank = 3}));
    EXPECT_EQ(ForeignModel(*checkpoint), "") << kind;
  }
}

}  // namespace
}  // namespace goldfinch
