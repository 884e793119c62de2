// What the benches of a device share beside tests/bench/harness.h: the ceilings of the device, measured in the same
// run, how a time is taken, and one table, in which every quantity stands beside what it is held against.
#ifndef GOLDFINCH_TESTS_GPU_BENCH_H_
#define GOLDFINCH_TESTS_GPU_BENCH_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "base/check.h"
#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "tests/bench/harness.h"

namespace goldfinch {

struct BenchOptions {
  std::string device = "cuda";  // --device
  std::string json;             // --json
  std::string filter;           // --filter
  bool tiny = false;            // --tiny
};

void AddBenchFlags(CLI::App& app, BenchOptions& options);
// What a program's main returns; prints an error.
int ExitStatus(const absl::Status& status);

// A million random 32-bit numbers, the same in every run.
const std::vector<uint32_t>& RandomBits();

// Tensors of one measurement. After an allocation has failed it hands out tensors that must not be used: ask status().
class Memory {
 public:
  explicit Memory(Backend& backend) : backend_(backend) {}

  const absl::Status& status() const { return status_; }

  Tensor New(DType dtype, const Shape& shape);
  // A tensor of numbers that are drawn evenly from [low, high].
  Tensor Random(DType dtype, const Shape& shape, double low = -1, double high = 1);
  Tensor Act(const Shape& shape, double low = -1, double high = 1) {
    return Random(backend_.activation_dtype(), shape, low, high);
  }
  Tensor F32(const Shape& shape, double low = -1, double high = 1) { return Random(DType::kF32, shape, low, high); }
  // Random weights, so small that a product over `inputs` inputs is about as large as one input.
  Tensor Weight(const Shape& shape, int64_t inputs);
  NormWeights Norm(int64_t width) { return {F32({width}, 0.5, 1.5), F32({width})}; }

 private:
  // Random numbers of the host at first, then what is there is doubled.
  void Fill(const Tensor& tensor, double low, double high);

  Backend& backend_;
  std::vector<std::shared_ptr<void>> blocks_;
  absl::Status status_;
  uint64_t next_ = 0;
};

// Which of a time's quantities has an aim.
struct Goal {
  enum class Kind { kNone, kRatio, kMilliseconds, kNanosecondsPerHeadAndToken, kTimesAnother };
  Kind kind = Kind::kNone;
  Aim aim = {};
  double another_seconds = 0;  // for kTimesAnother
  const char* of = "";         // the name of the ceiling, or of the other quantity

  // At least this part of the speed of a ceiling.
  static Goal Ceiling(double part, const char* of = "a copy") { return {Kind::kRatio, {.low = part}, 0, of}; }
  static Goal Seconds(double seconds) { return {Kind::kMilliseconds, {.high = seconds * 1e3}}; }
  static Goal Nanoseconds(double nanoseconds) { return {Kind::kNanosecondsPerHeadAndToken, {.high = nanoseconds}}; }
  // At most `times` what another quantity takes.
  static Goal Times(double times, double another_seconds, const char* of = "full") {
    return {Kind::kTimesAnother, {.high = times}, another_seconds, of};
  }
};

// What one run must do.
struct Work {
  double bytes = 0;  // each input read once, each output written once
  double operations = 0;
  double units = 0;   // tokens times heads, for Goal::Nanoseconds
  double tokens = 0;  // if it is a model's run: the rate is then given in tokens
};

class Bench {
 public:
  // Prints the head of the table. `backend` must outlive the bench.
  Bench(Backend& backend, const BenchOptions& options);

  Backend& backend() { return backend_; }
  DType act() const { return backend_.activation_dtype(); }
  double act_bytes() const { return static_cast<double>(SizeOf(act())); }
  bool tiny() const { return options_.tiny; }
  // A size, or what stands for it where speed is not looked at.
  int64_t Size(int64_t full, int64_t tiny) const { return options_.tiny ? tiny : full; }
  bool Wants(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }
  // How many sets of inputs take turns.
  int Sets(double bytes) const;

  // The rates of a copy and of a large product, which later rows are held against.
  void MeasureCeilings();

  // Seconds of run(set), a median; 0 if there is not the memory. `out` is an output of it: a kernel that writes
  // nothing, or NaN, is not measured.
  template <typename Run>
  double Time(const std::string& name, const Memory& memory, int sets, const Tensor& out, Run run) {
    if (!memory.status().ok()) {
      NotMeasured(name, memory.status().message());
      return 0;
    }
    int set = 0;
    const auto seconds_of = [&](int64_t runs) {
      const double start = Now();
      for (int64_t i = 0; i < runs; ++i) run(set++ % sets);
      const absl::Status status = backend_.Synchronize();
      GF_CHECK(status.ok()) << name << ": " << status;
      return (Now() - start) / static_cast<double>(runs);
    };
    seconds_of(options_.tiny ? 1 : std::max(3, sets));
    CheckOutput(name, out);
    if (options_.tiny) return seconds_of(1);
    constexpr double kRepeatSeconds = 0.05;
    const auto runs = static_cast<int64_t>(std::clamp(kRepeatSeconds / seconds_of(3), 1.0, 2000.0));
    std::vector<double> repeats(7);
    for (double& repeat : repeats) repeat = seconds_of(runs);
    return Median(repeats);
  }

  // A row of the table.
  void Add(const std::string& name, double seconds, const Work& work, const Goal& goal);
  // A row of something that is not a time: `value` in `unit`, at least `least`.
  void AddValue(const std::string& name, double value, const std::string& unit, const std::string& detail,
                double least);
  // A row that says why there is no figure.
  void NotMeasured(const std::string& name, absl::string_view why);

  template <typename Run>
  double Measure(const std::string& name, const Memory& memory, int sets, const Tensor& out, const Work& work,
                 const Goal& goal, Run run) {
    const double seconds = Time(name, memory, sets, out, run);
    if (seconds > 0) Add(name, seconds, work, goal);
    return seconds;
  }

  nlohmann::json Json() const;

 private:
  static constexpr char kColumn[] = "device";

  void CheckOutput(const std::string& name, const Tensor& out);
  // Adds to `figures_`; a name that was measured before, as small sizes can be equal, gets a number.
  void Record(const std::string& name, double value, int decimals, Aim aim, nlohmann::json details);
  void Print(const std::string& name, const std::string& measured, const std::string& rate, const std::string& floor,
             const std::string& ratio, const std::string& aim, const std::string& verdict) const;

  Backend& backend_;
  const BenchOptions options_;
  double copied_per_second_ = 0;
  double operations_per_second_ = 0;
  Figures figures_{{kColumn}};
  std::map<std::string, int> times_recorded_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_GPU_BENCH_H_
