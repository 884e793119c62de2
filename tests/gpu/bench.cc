#include "tests/gpu/bench.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace goldfinch {
namespace {

// What the sets of one measurement together have at least: several times the largest cache.
constexpr int64_t kRotatedBytes = int64_t{256} << 20;
constexpr int kSetsMax = 32;
constexpr size_t kRandomCount = size_t{1} << 20;

uint16_t ToBf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float FromBf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
}

}  // namespace

void AddBenchFlags(CLI::App& app, BenchOptions& options) {
  app.add_option("--device", options.device, "cuda, or cpu to try the program itself")
      ->check(CLI::IsMember({"cuda", "cpu"}));
  app.add_flag("--tiny", options.tiny, "small sizes, once each: the times mean nothing");
  app.add_option("--json", options.json, "also writes the figures to this file");
  app.add_option("--filter", options.filter, "only quantities whose name has this in it");
}

int ExitStatus(const absl::Status& status) {
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

const std::vector<uint32_t>& RandomBits() {
  static const auto& bits = *new std::vector<uint32_t>([] {
    std::vector<uint32_t> all(kRandomCount);
    uint64_t state = 0x9E3779B97F4A7C15;
    for (uint32_t& next : all) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      next = static_cast<uint32_t>(state >> 32);
    }
    return all;
  }());
  return bits;
}

Tensor Memory::New(DType dtype, const Shape& shape) {
  Tensor tensor{nullptr, dtype, shape};
  if (!status_.ok()) return tensor;
  auto memory = backend_.Allocate(tensor.bytes(), "a measurement");
  if (!memory.ok()) {
    status_ = memory.status();
    return tensor;
  }
  blocks_.push_back(*std::move(memory));
  tensor.data = blocks_.back().get();
  return tensor;
}

Tensor Memory::Random(DType dtype, const Shape& shape, double low, double high) {
  const Tensor tensor = New(dtype, shape);
  if (status_.ok()) Fill(tensor, low, high);
  return tensor;
}

Tensor Memory::Weight(const Shape& shape, int64_t inputs) {
  const double size = 1.7 / std::sqrt(static_cast<double>(inputs));
  return Random(DType::kBf16, shape, -size, size);
}

void Memory::Fill(const Tensor& tensor, double low, double high) {
  const std::vector<uint32_t>& random = RandomBits();
  const int64_t elements = tensor.shape.elements(), size = SizeOf(tensor.dtype);
  int64_t done = std::min<int64_t>(elements, static_cast<int64_t>(random.size()) - 123);
  std::vector<char> host(done * size);
  next_ += 7919;
  for (int64_t i = 0; i < done; ++i) {
    const uint32_t bits = random[(next_ + i) % kRandomCount];
    const auto value = static_cast<float>(low + (high - low) * (bits * 0x1p-32));
    switch (tensor.dtype) {
      case DType::kF32:
        std::memcpy(&host[i * size], &value, 4);
        break;
      case DType::kBf16: {
        const uint16_t narrow = ToBf16(value);
        std::memcpy(&host[i * size], &narrow, 2);
        break;
      }
      case DType::kU16: {
        const auto id = static_cast<uint16_t>(value);
        std::memcpy(&host[i * size], &id, 2);
        break;
      }
      default:
        GF_CHECK(false) << Name(tensor.dtype);
    }
  }
  const auto part = [&](int64_t begin, int64_t count) {
    return Tensor{static_cast<char*>(tensor.data) + begin * size, tensor.dtype, {count}};
  };
  backend_.CopyFromHost(host.data(), part(0, done));
  for (int64_t count; done < elements; done += count) {
    count = std::min(done, elements - done);
    backend_.Copy(part(0, count), part(done, count));
  }
}

Bench::Bench(Backend& backend, const BenchOptions& options) : backend_(backend), options_(options) {
  absl::PrintF("%s\n", backend.Describe());
  Print("quantity", "measured", "rate", "floor", "ratio", "aim", "");
}

void Bench::Record(const std::string& name, double value, int decimals, Aim aim, nlohmann::json details) {
  const int times = ++times_recorded_[name];
  figures_.Add(times == 1 ? name : absl::StrCat(name, " (", times, ")"), kColumn, value, decimals, aim,
               std::move(details));
}

void Bench::Print(const std::string& name, const std::string& measured, const std::string& rate,
                  const std::string& floor, const std::string& ratio, const std::string& aim,
                  const std::string& verdict) const {
  absl::PrintF("%-48s %10s %18s %10s %6s  %-30s %s\n", name, measured, rate, floor, ratio, aim, verdict);
  std::fflush(stdout);
}

int Bench::Sets(double bytes) const {
  if (options_.tiny) return 2;
  return std::clamp(static_cast<int>(std::ceil(static_cast<double>(kRotatedBytes) / bytes)), 2, kSetsMax);
}

void Bench::MeasureCeilings() {
  {
    const int64_t words = Size(int64_t{1} << 28, 1 << 12);
    Memory memory(backend_);
    const Tensor from = memory.F32({words}), to = memory.New(DType::kF32, {words});
    const double bytes = 8.0 * static_cast<double>(words);
    const double seconds = Time("copy, read and written", memory, 1, to, [&](int) { backend_.Copy(from, to); });
    if (seconds == 0) return;
    copied_per_second_ = bytes / seconds;
    Add("copy, read and written", seconds, {.bytes = bytes}, {});
  }
  const int64_t size = Size(8192, 32);
  Memory memory(backend_);
  const Tensor x = memory.Act({size, size}), out = memory.New(act(), {size, size});
  const Matrix weight{memory.Weight({size, size}, size)};
  const double operations = 2.0 * std::pow(static_cast<double>(size), 3);
  const double seconds = Time("product 8192^3 bf16", memory, 1, out, [&](int) { backend_.MatMul(x, weight, {}, out); });
  if (seconds == 0) return;
  operations_per_second_ = operations / seconds;
  Add("product 8192^3 bf16", seconds, {.operations = operations}, {});
}

void Bench::Add(const std::string& name, double seconds, const Work& work, const Goal& goal) {
  const double floor = std::max(copied_per_second_ > 0 ? work.bytes / copied_per_second_ : 0,
                                operations_per_second_ > 0 ? work.operations / operations_per_second_ : 0);
  const double ratio = floor / seconds;
  std::string rate;
  if (work.tokens > 0) {
    rate = absl::StrFormat("%.0f tokens/s", work.tokens / seconds);
  } else if (work.units > 0) {
    rate = absl::StrFormat("%.3f ns/head/token", seconds / work.units * 1e9);
  } else if (work.operations > 0 && (work.bytes == 0 || floor * copied_per_second_ > work.bytes)) {
    rate = absl::StrFormat("%.1f TFLOP/s", work.operations / seconds / 1e12);
  } else if (work.bytes > 0) {
    rate = absl::StrFormat("%.0f GB/s", work.bytes / seconds / 1e9);
  }
  double compared = 0;
  std::string unit;
  switch (goal.kind) {
    case Goal::Kind::kNone:
      break;
    case Goal::Kind::kRatio:
      compared = ratio;
      unit = absl::StrCat(" of ", goal.of);
      break;
    case Goal::Kind::kMilliseconds:
      compared = seconds * 1e3;
      unit = " ms";
      break;
    case Goal::Kind::kNanosecondsPerHeadAndToken:
      compared = seconds / work.units * 1e9;
      unit = " ns/head/token";
      break;
    case Goal::Kind::kTimesAnother:
      compared = seconds / goal.another_seconds;
      unit = absl::StrFormat(" of %s, is %.2f", goal.of, compared);
      break;
  }
  const std::string verdict = goal.aim.Verdict(compared);
  const std::string aim = goal.aim ? absl::StrCat(goal.aim.Text(), unit) : "";
  Print(name, absl::StrFormat("%.3f ms", seconds * 1e3), rate, absl::StrFormat("%.3f ms", floor * 1e3),
        absl::StrFormat("%.2f", ratio), aim, verdict);
  Record(name, seconds * 1e3, 3, {},
         {{"seconds", seconds},
          {"bytes", work.bytes},
          {"operations", work.operations},
          {"units", work.units},
          {"tokens", work.tokens},
          {"floor_seconds", floor},
          {"ratio", ratio},
          {"aim", aim},
          {"verdict", verdict}});
}

void Bench::AddValue(const std::string& name, double value, const std::string& unit, const std::string& detail,
                     double least) {
  const Aim aim = {.low = least};
  Print(name, absl::StrFormat("%.4g %s", value, unit), detail, "", "", absl::StrCat(aim.Text(), " ", unit),
        aim.Verdict(value));
  Record(name, value, 4, aim, {{"unit", unit}, {"detail", detail}});
}

void Bench::NotMeasured(const std::string& name, absl::string_view why) {
  absl::PrintF("%-48s not measured: %s\n", name, why);
  std::fflush(stdout);
  Record(name, std::numeric_limits<double>::quiet_NaN(), 0, {}, {{"not_measured", std::string(why)}});
}

nlohmann::json Bench::Json() const { return {{"device", backend_.Describe()}, {"quantities", figures_.Json()}}; }

void Bench::CheckOutput(const std::string& name, const Tensor& out) {
  if (out.data == nullptr) return;
  Tensor part = out;
  const int64_t count = std::min<int64_t>(out.shape.elements(), 4096);
  part.shape = {count};
  std::vector<char> host(part.bytes());
  backend_.CopyToHost(part, host.data());
  bool all_zero = true;
  for (int64_t i = 0; i < count; ++i) {
    float value = 0;
    if (out.dtype == DType::kF32) {
      std::memcpy(&value, &host[4 * i], 4);
    } else {
      uint16_t narrow;
      std::memcpy(&narrow, &host[2 * i], 2);
      value = FromBf16(narrow);
    }
    GF_CHECK(std::isfinite(value)) << name << ": element " << i << " of its output is " << value;
    all_zero = all_zero && value == 0;
  }
  GF_CHECK(!all_zero) << name << ": its output is zero";
}

}  // namespace goldfinch
