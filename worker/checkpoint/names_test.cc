#include "worker/checkpoint/names.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(NamesTest, SecondSchemeBecomesTheAuthors) {
  const std::pair<const char*, const char*> names[] = {
      {"rwkv.embeddings.weight", "emb.weight"},
      {"rwkv.blocks.0.pre_ln.weight", "blocks.0.ln0.weight"},
      {"rwkv.blocks.0.pre_ln.bias", "blocks.0.ln0.bias"},
      {"rwkv.blocks.23.ln1.weight", "blocks.23.ln1.weight"},
      {"rwkv.blocks.23.ln2.bias", "blocks.23.ln2.bias"},
      {"rwkv.ln_out.weight", "ln_out.weight"},
      {"head.weight", "head.weight"},
      // Both mixers of both models.
      {"rwkv.blocks.1.attention.key.weight", "blocks.1.att.key.weight"},
      {"rwkv.blocks.1.attention.value.weight", "blocks.1.att.value.weight"},
      {"rwkv.blocks.1.attention.receptance.weight", "blocks.1.att.receptance.weight"},
      {"rwkv.blocks.1.attention.gate.weight", "blocks.1.att.gate.weight"},
      {"rwkv.blocks.1.attention.output.weight", "blocks.1.att.output.weight"},
      {"rwkv.blocks.1.attention.ln_x.weight", "blocks.1.att.ln_x.weight"},
      {"rwkv.blocks.1.attention.ln_x.bias", "blocks.1.att.ln_x.bias"},
      {"rwkv.blocks.1.attention.time_decay", "blocks.1.att.time_decay"},
      {"rwkv.blocks.1.attention.time_faaaa", "blocks.1.att.time_faaaa"},
      {"rwkv.blocks.1.attention.time_first", "blocks.1.att.time_first"},
      {"rwkv.blocks.1.feed_forward.key.weight", "blocks.1.ffn.key.weight"},
      {"rwkv.blocks.1.feed_forward.value.weight", "blocks.1.ffn.value.weight"},
      {"rwkv.blocks.1.feed_forward.receptance.weight", "blocks.1.ffn.receptance.weight"},
      // Eagle.
      {"rwkv.blocks.1.attention.time_mix_key", "blocks.1.att.time_mix_k"},
      {"rwkv.blocks.1.attention.time_mix_value", "blocks.1.att.time_mix_v"},
      {"rwkv.blocks.1.attention.time_mix_receptance", "blocks.1.att.time_mix_r"},
      {"rwkv.blocks.1.attention.time_mix_gate", "blocks.1.att.time_mix_g"},
      {"rwkv.blocks.1.feed_forward.time_mix_key", "blocks.1.ffn.time_mix_k"},
      {"rwkv.blocks.1.feed_forward.time_mix_receptance", "blocks.1.ffn.time_mix_r"},
      // Finch.
      {"rwkv.blocks.1.attention.time_maa_x", "blocks.1.att.time_maa_x"},
      {"rwkv.blocks.1.attention.time_maa_w1", "blocks.1.att.time_maa_w1"},
      {"rwkv.blocks.1.attention.time_decay_w2", "blocks.1.att.time_decay_w2"},
      {"rwkv.blocks.1.feed_forward.time_maa_k", "blocks.1.ffn.time_maa_k"},
  };
  for (const auto& [published, authors] : names) EXPECT_EQ(CanonicalName(published), authors);
}

TEST(NamesTest, PrefixesOfFrameworksAreTakenOff) {
  EXPECT_EQ(CanonicalName("_forward_module.blocks.0.att.key.weight"), "blocks.0.att.key.weight");
  EXPECT_EQ(CanonicalName("module.emb.weight"), "emb.weight");
  EXPECT_EQ(CanonicalName("model.head.weight"), "head.weight");
  EXPECT_EQ(CanonicalName("_orig_mod.module._forward_module.model.head.weight"), "head.weight");
  EXPECT_EQ(CanonicalName("model.rwkv.embeddings.weight"), "emb.weight");
  EXPECT_EQ(CanonicalName("blocks.0.module.weight"), "blocks.0.module.weight");
}

TEST(NamesTest, OtherNamesStay) {
  for (const char* name : {"emb.weight", "blocks.0.att.time_mix_k", "blocks.0.ln0.weight", "attention.embeddings",
                           "rwkv", "", "my_module.emb.weight", "modules.emb.weight"}) {
    EXPECT_EQ(CanonicalName(name), name);
  }
  EXPECT_EQ(CanonicalName("rwkv.my_attention.weight"), "my_attention.weight") << "only whole components are replaced";
}

}  // namespace
}  // namespace goldfinch
