#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/group_norm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void GroupNormTarget(Context& context, ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate,
                     Tensor out) {
  const int64_t width = x.dim(1), group = width / groups;
  context.pool.ParallelFor(
      x.dim(0),
      [&](int64_t row, int thread) HWY_ATTR {
        const Scratch::Frame frame(context.scratch[thread]);
        float* standard = context.scratch[thread].Floats(width);  // `out` may be `gate`
        for (int64_t g = 0; g < width; g += group)
          StandardizeRow(x.f32() + row * width + g, group, epsilon, standard + g);
        const float* weight = norm.weight.f32();
        const float* bias = norm.bias.f32();
        const float* gate_row = gate ? gate.f32() + row * width : nullptr;
        FillRow(out.f32() + row * width, width, [&](size_t i, size_t left) HWY_ATTR {
          const VF v = hn::MulAdd(LoadN(standard + i, left), LoadN(weight + i, left), LoadN(bias + i, left));
          return gate_row == nullptr ? v : hn::Mul(v, LoadN(gate_row + i, left));
        });
      },
      4 * width);
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(GroupNormTarget);

void GroupNorm(Context& context, ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate,
               Tensor out) {
  HWY_DYNAMIC_DISPATCH(GroupNormTarget)(context, x, groups, norm, epsilon, gate, out);
}

}  // namespace goldfinch::cpu
#endif
