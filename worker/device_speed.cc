#include "worker/device_speed.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"

namespace goldfinch {
namespace {

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// A product of `rows` rows with the weight, and the shortest time that it has taken.
class Product {
 public:
  static absl::StatusOr<Product> Create(Backend& backend, int64_t rows, Matrix weight) {
    Product product(weight);
    for (Tensor* tensor : {&product.x_, &product.out_}) {
      const bool is_x = tensor == &product.x_;
      *tensor = {nullptr, DType::kF32, {rows, is_x ? weight.in() : weight.out()}};
      std::shared_ptr<void>& memory = is_x ? product.x_memory_ : product.out_memory_;
      GF_ASSIGN_OR_RETURN(memory, backend.Allocate(tensor->bytes(), "measuring"));
      tensor->data = memory.get();
    }
    return product;
  }

  // Runs it as often as fits in `seconds`, once at least.
  absl::Status Run(Backend& backend, double seconds) {
    const auto start = std::chrono::steady_clock::now();
    do {
      const auto begin = std::chrono::steady_clock::now();
      backend.MatMul(x_, weight_, {}, out_);
      GF_RETURN_IF_ERROR(backend.Synchronize());
      seconds_ = std::min(seconds_, Seconds(begin));
    } while (Seconds(start) < seconds);
    return absl::OkStatus();
  }

  double seconds() const { return std::max(seconds_, 1e-9); }

 private:
  explicit Product(Matrix weight) : weight_(weight) {}

  Matrix weight_;
  Tensor x_, out_;
  std::shared_ptr<void> x_memory_, out_memory_;
  double seconds_ = 1e9;
};

}  // namespace

absl::StatusOr<DeviceSpeed> MeasureDevice(Backend& backend) {
  // What else runs on the machine disturbs some of the rounds, not all of them; the first warms up.
  constexpr int kRounds = 6;
  constexpr double kSeconds = 0.015;  // for each product in each round
  // The whole weight is larger than any cache, to measure reading; its first kSmall rows fit in one, to measure
  // arithmetic.
  constexpr int64_t kIn = 4096, kOut = 8192, kSmall = 1024, kRows = 128;
  Tensor large{nullptr, DType::kBf16, {kOut, kIn}};
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> memory, backend.Allocate(large.bytes(), "measuring"));
  large.data = memory.get();
  {
    // Memory that was never written may be a single page of zeros, which is read too fast.
    const std::vector<uint16_t> ones(kOut * kIn, 0x3F80);
    backend.CopyFromHost(ones.data(), large);
  }
  const ConstTensor small{large.data, DType::kBf16, {kSmall, kSmall}};
  GF_ASSIGN_OR_RETURN(Product many, Product::Create(backend, kRows, {small}));
  GF_ASSIGN_OR_RETURN(Product one, Product::Create(backend, 1, {large}));
  for (int round = 0; round < kRounds; ++round) {
    GF_RETURN_IF_ERROR(many.Run(backend, kSeconds));
    GF_RETURN_IF_ERROR(one.Run(backend, kSeconds));
  }
  return DeviceSpeed{2.0 * kRows * kSmall * kSmall / many.seconds(),
                     static_cast<double>(large.bytes()) / one.seconds()};
}

}  // namespace goldfinch
