#include "worker/model/random_model.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"

namespace goldfinch {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  // From 0 to 1.
  float Unit() { return static_cast<float>(Next() >> 40) * 0x1p-24f; }
  // Bell-shaped, mean 0, deviation 1.
  float Normal() { return (Unit() + Unit() + Unit() + Unit() - 2) * std::sqrt(3.0f); }

 private:
  uint64_t state_;
};

// Magnitudes keep every activation and every gate near 1, so that a wrong term shows.
class ModelWriter {
 public:
  explicit ModelWriter(const RandomModelSpec& spec) : spec_(spec), width_(spec.width), random_(spec.seed) {}

  std::vector<TestTensor> Write() {
    const auto layers = static_cast<int>(spec_.layers.size());
    Normal("emb.weight", {spec_.vocab_size, width_}, 0, 0.5f);
    Norm("blocks.0.ln0");
    bool gold = false;
    for (int layer = 0; layer < layers; ++layer) {
      block_ = absl::StrCat("blocks.", layer, ".");
      Norm(block_ + "ln1");
      Norm(block_ + "ln2");
      TimeMix(spec_.layers[layer]);
      ChannelMix(spec_.layers[layer]);
      gold = gold || spec_.layers[layer] == "gold";
    }
    if (gold) {
      Linear("w_kv_cache_a", width_ / 16, width_);
      Linear("w_kv_cache_b", width_, width_ + width_ / 16);
    }
    Norm("ln_out");
    Linear("head", spec_.vocab_size, width_);
    return std::move(tensors_);
  }

 private:
  void Normal(const std::string& name, const std::vector<int64_t>& shape, float mean, float deviation) {
    for (float& value : Add(name, shape)) value = mean + deviation * random_.Normal();
  }
  void Uniform(const std::string& name, const std::vector<int64_t>& shape, float low, float high) {
    for (float& value : Add(name, shape)) value = low + (high - low) * random_.Unit();
  }
  std::vector<float>& Add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t elements = 1;
    for (int64_t dim : shape) elements *= dim;
    tensors_.push_back({name, spec_.dtype, shape, std::vector<float>(elements)});
    return tensors_.back().values;
  }

  void Norm(const std::string& name) {
    Normal(name + ".weight", {width_}, 1, 0.2f);
    Normal(name + ".bias", {width_}, 0, 0.2f);
  }
  void Linear(const std::string& name, int64_t out, int64_t in) {
    Normal(name + ".weight", {out, in}, 0, 1 / std::sqrt(static_cast<float>(in)));
  }
  void Linears(const std::vector<std::string>& names) {
    for (const std::string& name : names) Linear(block_ + "att." + name, width_, width_);
  }
  void Norms(const std::vector<std::string>& names) {
    for (const std::string& name : names) Norm(block_ + "att." + name);
  }
  void Mixes(const std::string& prefix, const std::vector<std::string>& names) {
    for (const std::string& name : names) Uniform(absl::StrCat(block_, prefix, name), {1, 1, width_}, 0, 1);
  }
  // w1 [D, targets * rank] and w2; without a group axis where there is one target.
  void Lora(const std::string& name, int64_t targets, int64_t rank) {
    Normal(absl::StrCat(block_, "att.", name, "_w1"), {width_, targets * rank}, 0,
           1 / std::sqrt(static_cast<float>(width_)));
    std::vector<int64_t> shape = {targets, rank, width_};
    if (targets == 1) shape.erase(shape.begin());
    Normal(absl::StrCat(block_, "att.", name, "_w2"), shape, 0, 0.3f / std::sqrt(static_cast<float>(rank)));
  }
  void DdLerp(const std::vector<std::string>& targets) {
    Mixes("att.time_maa_", {"x"});
    Mixes("att.time_maa_", targets);
    Lora("time_maa", static_cast<int64_t>(targets.size()), spec_.mix_rank);
  }
  void DataDependentDecay() {
    Uniform(block_ + "att.time_decay", {1, 1, width_}, -5, 0.5f);
    Lora("time_decay", 1, spec_.lora_rank);
    Normal(block_ + "att.time_faaaa", {heads(), spec_.head_size}, 0, 0.5f);
  }
  int64_t heads() const { return width_ / spec_.head_size; }

  void TimeMix(const std::string& kind) {
    const std::string att = block_ + "att.";
    const bool recurrent = kind == "eagle" || kind == "finch" || kind == "finch_c2";
    if (kind == "eagle") {
      Mixes("att.time_mix_", {"k", "v", "r"});
      Linears({"receptance", "key", "value", "output"});
      if (spec_.eagle_minor >= 1) {
        Mixes("att.time_mix_", {"g"});
        Linears({"gate"});
      }
      if (spec_.eagle_minor == 2) {
        Uniform(att + "time_decay", {heads(), spec_.head_size}, -5, 0.5f);
        Normal(att + "time_faaaa", {heads(), spec_.head_size}, 0, 0.5f);
      } else {
        Uniform(att + "time_decay", {heads()}, -5, 0.5f);
        Uniform(att + "time_first", {heads()}, -2, 0.5f);
      }
    } else if (kind == "finch") {
      DdLerp({"w", "k", "v", "r", "g"});
      DataDependentDecay();
      Linears({"receptance", "key", "value", "gate", "output"});
    } else if (kind == "finch_c2") {
      DdLerp(spec_.value2 ? std::vector<std::string>{"r", "k", "v", "w", "v2"}
                          : std::vector<std::string>{"r", "k", "v", "w"});
      DataDependentDecay();
      Linears({"receptance", "key", "value", "output"});
      if (spec_.value2) Lora("time_value2", 1, spec_.lora_rank);
    } else if (kind == "gold") {
      Mixes("att.time_maa_", {"x", "q", "v_cache", "k", "v"});
      Lora("time_maa_q", 1, spec_.mix_rank);
      Lora("time_maa_kv", 2, spec_.mix_rank);
      Lora("time_key", 1, spec_.lora_rank);
      Lora("time_value", 1, spec_.lora_rank);
      Linears({"query", "output"});
      Norms({"ln_q", "ln_k", "ln_v"});
    } else if (kind == "gptalpha") {
      DdLerp({"r", "k", "v"});
      Linears({"query", "key", "value", "output"});
      Norms({"ln_r", "ln_k", "ln_v"});
    } else {
      GF_CHECK(kind == "llama") << kind;
      Linears({"wq", "wk", "wv", "wo"});
    }
    if (kind != "llama") Norms({"ln_x"});
    if (recurrent && spec_.time_state) {
      Normal(att + "time_state", {heads(), spec_.head_size, spec_.head_size}, 0, 0.5f);
    }
  }

  void ChannelMix(const std::string& kind) {
    const std::string ffn = block_ + "ffn.";
    if (kind == "llama") {
      Linear(ffn + "w1", spec_.hidden, width_);
      Linear(ffn + "w2", width_, spec_.hidden);
      Linear(ffn + "w3", spec_.hidden, width_);
      return;
    }
    Mixes(kind == "eagle" ? "ffn.time_mix_" : "ffn.time_maa_", {"k", "r"});
    Linear(ffn + "key", spec_.hidden, width_);
    Linear(ffn + "value", width_, spec_.hidden);
    Linear(ffn + "receptance", width_, width_);
  }

  const RandomModelSpec& spec_;
  const int64_t width_;
  Random random_;
  std::string block_;
  std::vector<TestTensor> tensors_;
};

}  // namespace

std::vector<TestTensor> RandomModel(const RandomModelSpec& spec) { return ModelWriter(spec).Write(); }

std::vector<TestTensor> WithSecondNames(std::vector<TestTensor> tensors) {
  for (TestTensor& tensor : tensors) {
    if (tensor.name == "head.weight") continue;
    std::vector<std::string> parts = absl::StrSplit(tensor.name, '.');
    for (std::string& part : parts) {
      if (part == "emb") part = "embeddings";
      if (part == "ln0") part = "pre_ln";
      if (part == "att") part = "attention";
      if (part == "ffn") part = "feed_forward";
      if (part == "time_mix_k") part = "time_mix_key";
      if (part == "time_mix_v") part = "time_mix_value";
      if (part == "time_mix_r") part = "time_mix_receptance";
      if (part == "time_mix_g") part = "time_mix_gate";
    }
    tensor.name = "rwkv";
    for (const std::string& part : parts) absl::StrAppend(&tensor.name, ".", part);
  }
  return tensors;
}

std::shared_ptr<const Checkpoint> OpenFileBytes(std::string bytes) {
  // The file must outlive the checkpoint.
  struct Opened {
    std::string file;
    std::unique_ptr<Checkpoint> checkpoint;
  };
  auto opened = std::make_shared<Opened>();
  opened->file = std::move(bytes);
  auto checkpoint = Checkpoint::OpenBytes(opened->file, "test.pth");
  GF_CHECK(checkpoint.ok()) << checkpoint.status();
  opened->checkpoint = *std::move(checkpoint);
  return std::shared_ptr<const Checkpoint>(opened, opened->checkpoint.get());
}

std::shared_ptr<const Checkpoint> OpenTensors(const std::vector<TestTensor>& tensors) {
  return OpenFileBytes(PthBytes(tensors));
}

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.Next() % static_cast<uint64_t>(vocab_size));
  tokens[count / 2] = static_cast<int32_t>(vocab_size - 1);
  return tokens;
}

}  // namespace goldfinch
