// Products with quantized weights (kernels/quantize.h).
//
// x is rounded to 8 bits with one scale for each group of 32 inputs. A group's products are summed as integers, which
// is exact; the sums of the groups are multiplied by their scales and added in order, by fused multiply-adds. So an
// output is the same bit for bit whatever rows share the call, and on every instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantized_matmul.cc"
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/epilogue-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quantized_by_input-inl.h"
#include "kernels/cpu/quantized_panels-inl.h"
#include "kernels/cpu/vector-inl.h"
#include "kernels/quantize.h"

HWY_BEFORE_QUANTIZED_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kTaskRows = 516;         // rows of a task at most: a whole number of tiles; 512 tokens fit
constexpr int64_t kRowStrips = 1032;       // rows times strips of a task at most: sums of 258 KiB
constexpr int64_t kPartStripGroups = 128;  // strips times groups of weights turned into panels at once: 256 KiB
// How far before its use a panel is prefetched. The hardware alone reads too little ahead where many instructions stand
// between two loads of weights.
constexpr int64_t kAheadBytes = 4096;

// Quantizes the rows of x. The result is memory of `shared`, which all threads read.
template <class Type>
Rows QuantizeRows(Context& context, ConstTensor x, Scratch& shared) {
  const int64_t rows = x.dim(0), groups = x.dim(1) / kGroupIn;
  Rows quantized;
  quantized.words = reinterpret_cast<int32_t*>(shared.Floats(rows * groups * kGroupWords));
  quantized.scales = shared.Floats(rows * groups);
  quantized.offsets = reinterpret_cast<int32_t*>(shared.Floats(rows * groups));
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        for (int64_t group = row * groups; group < (row + 1) * groups; ++group) {
          QuantizeGroup(x.f32() + group * kGroupIn, Type::kZero, quantized.words + group * kGroupWords,
                        quantized.scales + group, quantized.offsets + group);
        }
      },
      x.dim(1));
  return quantized;
}

// What the tile at `row` of a task's rows prefetches. The first tile reads the panel itself from memory. The others
// share the work of prefetching the panel at the same place of the task that this thread is likely to get next, `next`
// bytes further on.
Ahead AheadOf(int64_t row, int64_t rows, int64_t next, int64_t group_bytes) {
  if (row == 0) return {kAheadBytes, 0, group_bytes};
  const int64_t parts = std::max<int64_t>(1, (rows - 1) / kRows);
  const int64_t part_bytes = (group_bytes / 64 + parts - 1) / parts * 64, begin = (row - 1) / kRows * part_bytes;
  return {next, begin, next == 0 ? begin : std::min(begin + part_bytes, group_bytes)};
}

template <class Type>
void Product(Context& context, ConstTensor x, const Matrix& weight, const Epilogue& epilogue, Tensor out) {
  const int64_t rows = x.dim(0), in = weight.in(), width = weight.out(), groups = in / kGroupIn;
  Scratch& shared = context.scratch[0];
  const Scratch::Frame shared_frame(shared);
  const Rows quantized = QuantizeRows<Type>(context, x, shared);

  const bool by_input = weight.layout == Matrix::Layout::kInOut;
  // Strips of a task. Long runs are read faster, but every thread must have work, and the sums of many rows must fit a
  // cache.
  int64_t strips = by_input ? ByInputBlock(width) / kStripOut : 1;
  while (strips > 2 && (width / (strips * kStripOut) < 2 * context.pool.threads() ||
                        strips * std::min(rows, kTaskRows) > kRowStrips)) {
    strips /= 2;
  }
  const int64_t task_out = strips * kStripOut;
  if (by_input && rows <= kSparseRows) {
    context.pool.ParallelFor(
        width / task_out,
        [&](int64_t task, int) HWY_ATTR {
          const Block block = BlockOf(weight, strips, task);
          HWY_ALIGN float sums[kSparseRows * kBlockStripsMax * kStripOut];
          const auto multiply = rows == 1   ? SparseRows<Type, 1>
                                : rows == 2 ? SparseRows<Type, 2>
                                : rows == 3 ? SparseRows<Type, 3>
                                            : SparseRows<Type, kSparseRows>;
          multiply(quantized, groups, weight, block, sums);
          for (int64_t row = 0; row < rows; ++row) {
            FinishRow(sums + row * task_out, epilogue, row, block.first_out, task_out, out);
          }
        },
        rows * in * task_out / 4);
    return;
  }

  // Narrow weights are cut by rows as well, so that every thread has work.
  const int64_t out_tasks = (width + task_out - 1) / task_out;
  int64_t task_rows = std::min(rows, kTaskRows);
  while (task_rows > 8 * kRows && out_tasks * ((rows + task_rows - 1) / task_rows) < 4 * context.pool.threads()) {
    task_rows = (task_rows / 2 + kRows - 1) / kRows * kRows;
  }
  const int64_t row_tasks = (rows + task_rows - 1) / task_rows;
  const int64_t part_groups = by_input ? std::min(groups, kPartStripGroups / strips) : groups;
  const auto* weights = static_cast<const uint8_t*>(weight.data.data);
  const auto* scales = static_cast<const char*>(weight.scales.data);
  const int64_t panels = width / kPanelOut, panel_bytes = groups * Type::kGroupBytes;
  const int64_t panel_scales = by_input ? kPanelOut * SizeOf(weight.scales.dtype) : weight.scales.bytes() / panels;
  context.pool.ParallelFor(
      out_tasks * row_tasks,
      [&](int64_t task, int thread) HWY_ATTR {
        Scratch& scratch = context.scratch[thread];
        const Scratch::Frame frame(scratch);
        const int64_t first_out = task % out_tasks * task_out, outputs = std::min(task_out, width - first_out);
        const int64_t first_row = task / out_tasks * task_rows, task_end = std::min(rows, first_row + task_rows);
        const int64_t next_panels = task_out / kPanelOut * context.pool.threads();
        float* sums = scratch.Floats((task_end - first_row) * outputs);
        uint8_t* made = nullptr;
        if (by_input) {
          made = reinterpret_cast<uint8_t*>(scratch.Floats(outputs / kPanelOut * MadeBytes(part_groups) / 4));
        }
        // Multiplies the rows from `row` on with one panel, as many as a tile has; returns that number.
        const auto tile = [&](int64_t row, int64_t panel, const GroupRange& range) HWY_ATTR {
          using Made = std::conditional_t<Type::kGroupScales, Int4Bytes, Int8>;
          float* to = sums + (row - first_row) * outputs + panel * kPanelOut - first_out;
          const char* of_panel = scales + panel * panel_scales;
          if (by_input) {
            const int64_t place = (panel - first_out / kPanelOut) * MadeBytes(range.end - range.begin);
            return Tile<Made>(task_end - row, quantized, row, range, {made + place, of_panel, width, {}}, to, outputs);
          }
          const int64_t next = panel + next_panels < panels ? next_panels * panel_bytes : 0;
          const Ahead ahead = AheadOf(row - first_row, task_end - first_row, next, Type::kGroupBytes);
          return Tile<Type>(task_end - row, quantized, row, range,
                            {weights + panel * panel_bytes, of_panel, kPanelOut, ahead}, to, outputs);
        };
        for (GroupRange range{0, part_groups, groups}; range.begin < groups;) {
          if (by_input) MakePanels<Type>(BlockOf(weight, strips, task % out_tasks), range, made);
          for (int64_t row = first_row; row < task_end;) {
            int64_t count = 0;
            for (int64_t o = first_out; o < first_out + outputs; o += kPanelOut)
              count = tile(row, o / kPanelOut, range);
            for (int64_t r = row; r < row + count && range.end == groups; ++r) {
              FinishRow(sums + (r - first_row) * outputs, epilogue, r, first_out, outputs, out);
            }
            row += count;
          }
          range.begin = range.end;
          range.end = std::min(groups, range.begin + part_groups);
        }
      },
      task_rows * in * task_out / 4);
}

void QuantizedMatMulTarget(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  if (x.dim(0) == 0) return;
  if (weight.data.dtype == DType::kInt8) {
    Product<Int8>(context, x, weight, epilogue, out);
  } else {
    Product<Int4>(context, x, weight, epilogue, out);
  }
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(QuantizedMatMulTarget);

void QuantizedMatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  HWY_DYNAMIC_DISPATCH(QuantizedMatMulTarget)(context, x, weight, epilogue, out);
}

}  // namespace goldfinch::cpu
#endif
