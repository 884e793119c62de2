#include "tests/bench/random_checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

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

class TensorPlans {
 public:
  explicit TensorPlans(const RandomCheckpointSpec& spec) : width_(spec.width) {
    const int64_t finch_layers = spec.finch ? spec.layers : spec.layers * (spec.ratio - 1) / spec.ratio;
    Matrix("emb.weight", {spec.vocab_size, width_}, width_);
    Norm("blocks.0.ln0");
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      const std::string block = "blocks." + std::to_string(layer) + ".";
      Norm(block + "ln1");
      Norm(block + "ln2");
      if (spec.finch) {
        Finch(block + "att.");
      } else if (layer < finch_layers) {
        FinchC2(block + "att.");
      } else {
        Gold(block + "att.");
      }
      ChannelMix(block + "ffn.");
    }
    if (!spec.finch) {
      Matrix("w_kv_cache_a.weight", {width_ / 16, width_}, width_);
      Matrix("w_kv_cache_b.weight", {width_, width_ + width_ / 16}, width_);
    }
    Norm("ln_out");
    Matrix("head.weight", {spec.vocab_size, width_}, width_);
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

  // What Finch and Finch-C2 have, given the mixes that they differ in.
  void FinchShared(const std::string& att, std::initializer_list<const char*> mixes) {
    for (const char* target : mixes) Mix(att + "time_maa_" + target);
    Matrix(att + "time_maa_w1", {width_, 5 * kMixRank}, width_);
    Matrix(att + "time_maa_w2", {5, kMixRank, width_}, kMixRank * 100);
    Add(att + "time_decay", {1, 1, width_}, {-6, -1});
    Lora(att + "time_decay", kLoraRank);
    Add(att + "time_faaaa", {width_ / 64, 64}, {0, 1});
    for (const char* name : {"receptance", "key", "value", "output"}) Linear(att + name, width_, width_);
    Norm(att + "ln_x");
  }

  void Finch(const std::string& att) {
    FinchShared(att, {"x", "r", "k", "v", "w", "g"});
    Linear(att + "gate", width_, width_);
  }

  void FinchC2(const std::string& att) {
    FinchShared(att, {"x", "r", "k", "v", "w", "v2"});
    Lora(att + "time_value2", kLoraRank);
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

// A part of a tensor that one thread fills, from a seed of its own: what is written does not depend on the threads.
struct Piece {
  const TensorPlan* tensor;
  uint16_t* values;
  int64_t count;
  uint64_t seed;
};

constexpr int64_t kPieceElements = int64_t{1} << 20;

void Fill(const Piece& piece) {
  const Range& range = piece.tensor->range;
  const float step = (range.high - range.low) / 65536;
  uint64_t state = (piece.seed + 1) * 0x9E3779B97F4A7C15;
  for (int64_t i = 0; i < piece.count; i += 4) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    // Four draws a number: making gigabytes should not take minutes.
    for (int64_t part = 0; part < 4 && i + part < piece.count; ++part) {
      const float value = range.low + step * static_cast<float>(state >> (16 * part) & 0xFFFF);
      piece.values[i + part] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    }
  }
}

absl::Status Failed(const std::string& path, const char* what) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot be ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpointSpec& spec, const std::string& path) {
  const TensorPlans plans(spec);
  nlohmann::json header;
  int64_t bytes = 0;
  for (const TensorPlan& tensor : plans.tensors()) {
    const int64_t end = bytes + tensor.elements() * 2;
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {bytes, end}}};
    bytes = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const uint64_t length = text.size();
  const size_t begin = sizeof(length) + length, size = begin + bytes;

  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return Failed(path, "written");
  // Reserved, so that a full disk is an error here and no signal later.
  errno = posix_fallocate(file, 0, static_cast<off_t>(size));
  void* memory = errno == 0 ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  const absl::Status status = memory == MAP_FAILED ? Failed(path, "given its size") : absl::OkStatus();
  close(file);
  if (!status.ok()) return status;
  auto* data = static_cast<char*>(memory);
  std::memcpy(data, &length, sizeof(length));
  std::memcpy(data + sizeof(length), text.data(), text.size());

  std::vector<Piece> pieces;
  auto* values = reinterpret_cast<uint16_t*>(data + begin);
  for (const TensorPlan& tensor : plans.tensors()) {
    for (int64_t done = 0; done < tensor.elements(); done += kPieceElements) {
      pieces.push_back({&tensor, values + done, std::min(kPieceElements, tensor.elements() - done), pieces.size()});
    }
    values += tensor.elements();
  }
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads(std::max(1U, std::thread::hardware_concurrency()));
  for (std::thread& thread : threads) {
    thread = std::thread([&] {
      for (size_t i = next++; i < pieces.size(); i = next++) Fill(pieces[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  munmap(memory, size);
  return absl::OkStatus();
}

}  // namespace goldfinch
