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
      [&](int64_t row, int) HWY_ATTR {
        for (int64_t g = 0; g < width; g += group) {
          const float* from = x.f32() + row * width + g;
          const float* weight = norm.weight.f32() + g;
          const float* bias = norm.bias.f32() + g;
          const float* gate_row = gate ? gate.f32() + row * width + g : nullptr;
          const Moments moments(from, group, epsilon);
          FillRow(out.f32() + row * width + g, group, [&](size_t i, size_t left) HWY_ATTR {
            const VF v =
                hn::MulAdd(moments.Standardize(LoadN(from + i, left)), LoadN(weight + i, left), LoadN(bias + i, left));
            return gate_row == nullptr ? v : hn::Mul(v, LoadN(gate_row + i, left));
          });
        }
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
