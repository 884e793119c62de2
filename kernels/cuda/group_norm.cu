// LayerNorm and GroupNorm with a gate. Bound by memory: x and the gate are read once, out is written once. Predictions:
// docs/cuda-predictions.md.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;
constexpr int kKept = 4;  // vectors that a thread keeps in registers: rows up to 8192 wide are read once

template <typename In, typename Gate, typename Out>
struct Arguments {
  const In* x;
  const float* weight;
  const float* bias;
  const Gate* gate;  // may be null
  Out* out;
  int64_t width;       // of a row
  int64_t group_size;  // of what is normed
  int64_t groups;      // over all rows
  float epsilon;
};

template <int V, typename In, typename Gate, typename Out>
__device__ void StoreNormed(const Arguments<In, Gate, Out>& a, int64_t at, const float (&x)[V], float mean,
                            float scale) {
  float weight[V], bias[V], y[V];
  const int64_t column = at % a.width;
  LoadFloats<V>(a.weight + column, weight);
  LoadFloats<V>(a.bias + column, bias);
#pragma unroll
  for (int i = 0; i < V; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
  if (a.gate != nullptr) {
    float gate[V];
    LoadFloats<V>(a.gate + at, gate);
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] *= gate[i];
  }
  StoreFloats<V>(y, a.out + at);
}

// A block has a group.
template <typename In, typename Gate, typename Out, int V>
__global__ void __launch_bounds__(kThreads) BlockNormKernel(Arguments<In, Gate, Out> a) {
  float* const scratch = DynamicShared<float>();
  const int64_t begin = int64_t{blockIdx.x} * a.group_size, step = int64_t{blockDim.x} * V;
  const int64_t first = int64_t{threadIdx.x} * V;
  float kept[kKept][V];
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step >= a.group_size) break;
    LoadFloats<V>(a.x + begin + first + k * step, kept[k]);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += kept[k][i];
  }
  for (int64_t at = first + kKept * step; at < a.group_size; at += step) {
    float x[V];
    LoadFloats<V>(a.x + begin + at, x);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += x[i];
  }
  const float mean = BlockSum(sum, scratch) / static_cast<float>(a.group_size);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step >= a.group_size) break;
#pragma unroll
    for (int i = 0; i < V; ++i) squares += (kept[k][i] - mean) * (kept[k][i] - mean);
  }
  for (int64_t at = first + kKept * step; at < a.group_size; at += step) {
    float x[V];
    LoadFloats<V>(a.x + begin + at, x);
#pragma unroll
    for (int i = 0; i < V; ++i) squares += (x[i] - mean) * (x[i] - mean);
  }
  const float variance = BlockSum(squares, scratch) / static_cast<float>(a.group_size);
  const float scale = 1 / sqrtf(variance + a.epsilon);
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step >= a.group_size) break;
    StoreNormed<V>(a, begin + first + k * step, kept[k], mean, scale);
  }
  for (int64_t at = first + kKept * step; at < a.group_size; at += step) {
    float x[V];
    LoadFloats<V>(a.x + begin + at, x);
    StoreNormed<V>(a, begin + at, x, mean, scale);
  }
}

// `Team` lanes have a group, one vector each: heads of 64 and 128.
template <typename In, typename Gate, typename Out, int Team>
__global__ void __launch_bounds__(kThreads) TeamNormKernel(Arguments<In, Gate, Out> a) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t group = thread / Team;
  const bool there = group < a.groups;
  const int64_t at = thread * kVector;
  float x[kVector] = {};
  if (there) LoadFloats<kVector>(a.x + at, x);
  const auto team_sum = [](float value) {
#pragma unroll
    for (int mask = Team / 2; mask > 0; mask /= 2) value += ShflXor(value, mask);
    return value;
  };
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum += x[i];
  const float mean = team_sum(sum) / (Team * kVector);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / sqrtf(team_sum(squares) / (Team * kVector) + a.epsilon);
  if (there) StoreNormed<kVector>(a, at, x, mean, scale);
}

template <typename In, typename Gate, typename Out>
void Start(Context& context, const Arguments<In, Gate, Out>& a) {
  const auto stream = static_cast<Stream>(context.stream());
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 32 == 0; };
  const bool vectors = a.group_size % kVector == 0 && aligned(a.x) && aligned(a.gate) && aligned(a.out) &&
                       aligned(a.weight) && aligned(a.bias);
  const auto start_teams = [&](auto team) {
    constexpr int kTeam = decltype(team)::value;
    Launch(stream, TeamNormKernel<In, Gate, Out, kTeam>,
           {dim3(static_cast<unsigned>(CeilDiv<int64_t>(a.groups * kTeam, kThreads))), dim3(kThreads)}, a);
  };
  if (vectors && a.group_size == 64) return start_teams(std::integral_constant<int, 8>());
  if (vectors && a.group_size == 128) return start_teams(std::integral_constant<int, 16>());
  const int64_t vector = vectors ? kVector : 1;
  const int64_t threads =
      std::min<int64_t>(kThreads, CeilDiv<int64_t>(CeilDiv<int64_t>(a.group_size, vector), kWarp) * kWarp);
  Launch(stream, vectors ? BlockNormKernel<In, Gate, Out, kVector> : BlockNormKernel<In, Gate, Out, 1>,
         {dim3(static_cast<unsigned>(a.groups)), dim3(static_cast<unsigned>(threads)), kWarp * sizeof(float)}, a);
}

}  // namespace

void GroupNorm(Context& context, ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate,
               Tensor out) {
  const int64_t width = x.dim(1);
  VisitFloatType(context.activation_dtype(), [&](auto act_tag) {
    using Act = typename decltype(act_tag)::type;
    const auto start = [&](auto in, auto to) {
      using In = decltype(in);
      using Out = decltype(to);
      Start<In, Act, Out>(context, {static_cast<const In*>(x.data), norm.weight.f32(), norm.bias.f32(),
                                    static_cast<const Act*>(gate.data), static_cast<Out*>(out.data), width,
                                    width / groups, x.dim(0) * groups, epsilon});
    };
    const bool wide_in = x.dtype == DType::kF32, wide_out = out.dtype == DType::kF32;
    if (wide_in && wide_out) {
      start(float{}, float{});
    } else if (wide_in) {
      start(float{}, Act{});
    } else if (wide_out) {
      start(Act{}, float{});
    } else {
      start(Act{}, Act{});
    }
  });
}

}  // namespace goldfinch::cuda
