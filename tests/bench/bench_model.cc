// Writes a GoldFinch checkpoint with random bf16 weights, for benches: the shape of a released model, no meaning.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "nlohmann/json.hpp"

namespace {

struct Options {
  std::string out;
  int64_t layers = 24;
  int64_t width = 2048;
  int64_t vocab_size = 65536;
  int64_t ratio = 3;  // layers / GOLD layers
};

// Where the values of a tensor are drawn from, uniformly.
struct Range {
  float low;
  float high;
};

struct TensorPlan {
  std::string name;
  std::vector<int64_t> shape;
  Range range;

  int64_t elements() const {
    int64_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
};

class Plan {
 public:
  explicit Plan(const Options& options) : width_(options.width) {
    const int64_t finch_layers = options.layers * (options.ratio - 1) / options.ratio;
    Matrix("emb.weight", {options.vocab_size, width_}, width_);
    Norm("blocks.0.ln0");
    for (int64_t layer = 0; layer < options.layers; ++layer) {
      const std::string block = "blocks." + std::to_string(layer) + ".";
      Norm(block + "ln1");
      Norm(block + "ln2");
      if (layer < finch_layers) {
        FinchC2(block + "att.");
      } else {
        Gold(block + "att.");
      }
      ChannelMix(block + "ffn.");
    }
    Matrix("w_kv_cache_a.weight", {width_ / 16, width_}, width_);
    Matrix("w_kv_cache_b.weight", {width_, width_ + width_ / 16}, width_);
    Norm("ln_out");
    Matrix("head.weight", {options.vocab_size, width_}, width_);
  }

  const std::vector<TensorPlan>& tensors() const { return tensors_; }

 private:
  static constexpr int64_t kMixRank = 32;
  static constexpr int64_t kLoraRank = 64;

  void Add(const std::string& name, std::vector<int64_t> shape, Range range) {
    tensors_.push_back({name, std::move(shape), range});
  }
  // Rows keep the size of what they are multiplied with.
  void Matrix(const std::string& name, std::vector<int64_t> shape, int64_t inputs) {
    const float limit = std::sqrt(3.f / static_cast<float>(inputs));
    Add(name, std::move(shape), {-limit, limit});
  }
  void Linear(const std::string& name, int64_t out, int64_t in) { Matrix(name + ".weight", {out, in}, in); }
  void Mix(const std::string& name) { Add(name, {1, 1, width_}, {0, 1}); }
  void Norm(const std::string& name) {
    Add(name + ".weight", {width_}, {0.9f, 1.1f});
    Add(name + ".bias", {width_}, {-0.1f, 0.1f});
  }
  void Lora(const std::string& name, int64_t rank) {
    Matrix(name + "_w1", {width_, rank}, width_);
    Matrix(name + "_w2", {rank, width_}, rank * 100);
  }

  void FinchC2(const std::string& att) {
    for (const char* target : {"x", "r", "k", "v", "w", "v2"}) Mix(att + "time_maa_" + target);
    Matrix(att + "time_maa_w1", {width_, 5 * kMixRank}, width_);
    Matrix(att + "time_maa_w2", {5, kMixRank, width_}, kMixRank * 100);
    Add(att + "time_decay", {1, 1, width_}, {-6, -1});
    Lora(att + "time_decay", kLoraRank);
    Lora(att + "time_value2", kLoraRank);
    Add(att + "time_faaaa", {width_ / 64, 64}, {0, 1});
    for (const char* name : {"receptance", "key", "value", "output"}) Linear(att + name, width_, width_);
    Norm(att + "ln_x");
  }

  void Gold(const std::string& att) {
    for (const char* target : {"x", "q", "k", "v", "v_cache"}) Mix(att + "time_maa_" + target);
    Lora(att + "time_maa_q", kMixRank);
    Matrix(att + "time_maa_kv_w1", {width_, 2 * kMixRank}, width_);
    Matrix(att + "time_maa_kv_w2", {2, kMixRank, width_}, kMixRank * 100);
    Lora(att + "time_key", kLoraRank);
    Lora(att + "time_value", kLoraRank);
    for (const char* name : {"query", "output"}) Linear(att + name, width_, width_);
    for (const char* name : {"ln_q", "ln_k", "ln_v", "ln_x"}) Norm(att + name);
  }

  void ChannelMix(const std::string& ffn) {
    const int64_t hidden = width_ * 7 / 2;
    Mix(ffn + "time_maa_k");
    Mix(ffn + "time_maa_r");
    Linear(ffn + "key", hidden, width_);
    Linear(ffn + "receptance", width_, width_);
    Linear(ffn + "value", width_, hidden);
  }

  const int64_t width_;
  std::vector<TensorPlan> tensors_;
};

int Write(const Options& options) {
  const Plan plan(options);
  nlohmann::json header;
  int64_t offset = 0;
  for (const TensorPlan& tensor : plan.tensors()) {
    const int64_t end = offset + tensor.elements() * 2;
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  std::ofstream file(options.out, std::ios::binary | std::ios::trunc);
  const uint64_t length = text.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;

  std::mt19937 random(1);
  std::vector<uint16_t> values;
  for (const TensorPlan& tensor : plan.tensors()) {
    values.resize(tensor.elements());
    const float step = (tensor.range.high - tensor.range.low) / 65536;
    // Two draws a call: making gigabytes should not take minutes.
    for (size_t i = 0; i < values.size(); i += 2) {
      const uint32_t draw = random();
      for (size_t half = 0; half < 2 && i + half < values.size(); ++half) {
        const float value = tensor.range.low + step * static_cast<float>(draw >> (16 * half) & 0xFFFF);
        values[i + half] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
      }
    }
    file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 2));
  }
  file.close();
  if (!file) {
    std::fprintf(stderr, "bench_model: %s cannot be written\n", options.out.c_str());
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Writes a GoldFinch checkpoint with random weights.", "bench_model");
  app.add_option("--out", options.out, "the .safetensors to write")->required();
  app.add_option("--layers", options.layers, "layers")->check(CLI::Range(2, 100))->capture_default_str();
  app.add_option("--width", options.width, "model width, a multiple of 64")
      ->check(CLI::Range(64, 16384))
      ->capture_default_str();
  app.add_option("--vocab-size", options.vocab_size, "tokens")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--ratio", options.ratio, "one layer in so many is GOLD")
      ->check(CLI::Range(2, 6))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return Write(options);
}
