// Ops that move rows: embedding, copies, conversion, and writing into paged caches. All are bound by memory.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kThreads = 256;

// Copies and converts a row, V elements at a time, with the threads of one block.
template <typename From, typename To, int V>
__device__ void CopyRow(const From* from, To* to, int64_t width) {
  for (int64_t i = int64_t{threadIdx.x} * V; i < width; i += int64_t{blockDim.x} * V) {
    float values[V];
    LoadFloats<V>(from + i, values);
    StoreFloats<V>(values, to + i);
  }
}

template <typename From, int V>
__global__ void EmbedKernel(const From* table, const int32_t* ids, int64_t width, float* out) {
  const int64_t row = blockIdx.x;
  CopyRow<From, float, V>(table + ids[row] * width, out + row * width, width);
}

template <typename From, typename To, int V>
__global__ void CopyRowsKernel(const From* from, const RowCopy* copies, int64_t width, To* to) {
  const RowCopy copy = copies[blockIdx.x];
  CopyRow<From, To, V>(from + copy.from * width, to + copy.to * width, width);
}

template <typename From, typename To, int V>
__global__ void ConvertKernel(const From* from, int64_t count, To* to) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V; i < count;
       i += int64_t{gridDim.x} * blockDim.x * V) {
    float values[V];
    LoadFloats<V>(from + i, values);
    StoreFloats<V>(values, to + i);
  }
}

// To kInt8 rows of the compressed cache (CompressedRowWidth); a warp has a row.
template <typename From>
__global__ void __launch_bounds__(kThreads) QuantizeKernel(const From* from, int64_t rows, int64_t width, uint8_t* to) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (row >= rows) return;
  const int lane = threadIdx.x % kWarp;
  from += row * width;
  to += row * CompressedRowWidth(DType::kInt8, width);
  float largest = 0;
  bool finite = true;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float magnitude = fabsf(ToFloat(from[i]));
    largest = fmaxf(largest, magnitude);
    finite = finite && magnitude <= FLT_MAX;
  }
  finite = Ballot(!finite) == 0;
  constexpr uint32_t kNan = 0x7FC0;
  const uint32_t stored = finite ? Pack2<bf16_t>(WarpMax(largest) / 127, 0) : kNan;
  const float scale = Unpack2<bf16_t>(stored).x;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float quotient = scale > 0 ? ToFloat(from[i]) / scale : 0.f;
    to[i] = static_cast<uint8_t>(static_cast<int8_t>(rintf(fmaxf(-127.f, fminf(127.f, quotient)))));
  }
  if (lane < 2) to[width + lane] = static_cast<uint8_t>(stored >> (8 * lane));
}

// The row of a paged cache for row `row` of a call.
__device__ inline int64_t PageRow(const DeviceSpan* spans, int span_count, int row, int64_t page_tokens) {
  const DeviceSpan span = spans[FindSpan(spans, span_count, row)];
  const int64_t position = span.position + row - span.row_begin;
  return span.pages[position / page_tokens] * page_tokens + position % page_tokens;
}

// A block copies a row of a call to its place in the pages.
template <typename From, typename To, int V>
__global__ void AppendKernel(const From* from, const DeviceSpan* spans, int span_count, int64_t width,
                             int64_t page_tokens, To* pages) {
  const int row = static_cast<int>(blockIdx.x);
  CopyRow<From, To, V>(from + row * width, pages + PageRow(spans, span_count, row, page_tokens) * width, width);
}
__global__ void AppendBytesKernel(const uint8_t* from, const DeviceSpan* spans, int span_count, int64_t width,
                                  int64_t page_tokens, uint8_t* pages) {
  const int row = static_cast<int>(blockIdx.x);
  uint8_t* const to = pages + PageRow(spans, span_count, row, page_tokens) * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[row * width + i];
}

template <typename Id>
__global__ void AppendIdsKernel(const int32_t* ids, const DeviceSpan* spans, int span_count, int rows,
                                int64_t page_tokens, Id* pages) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  pages[PageRow(spans, span_count, row, page_tokens)] = static_cast<Id>(ids[row]);
}

// Whether rows can be moved 16 bytes at a time.
bool MovesVectors(int64_t width, const void* a, const void* b) {
  return width % 8 == 0 && reinterpret_cast<uintptr_t>(a) % 16 == 0 && reinterpret_cast<uintptr_t>(b) % 16 == 0;
}

// Calls use(from type, to type, elements at once).
template <typename Use>
void VisitRows(const ConstTensor& from, const Tensor& to, int64_t width, Use use) {
  const bool vectors = MovesVectors(width, from.data, to.data);
  VisitFloatType(from.dtype, [&](auto from_tag) {
    VisitFloatType(to.dtype, [&](auto to_tag) {
      using From = typename decltype(from_tag)::type;
      using To = typename decltype(to_tag)::type;
      constexpr int kVector = 16 / static_cast<int>(std::max(sizeof(From), sizeof(To)));
      if (vectors) {
        use(from_tag, to_tag, std::integral_constant<int, kVector>());
      } else {
        use(from_tag, to_tag, std::integral_constant<int, 1>());
      }
    });
  });
}

dim3 RowBlock(int64_t width, int vector) {
  const int64_t threads = CeilDiv<int64_t>(CeilDiv<int64_t>(width, vector), kWarp) * kWarp;
  return dim3(static_cast<unsigned>(std::min<int64_t>(kThreads, threads)));
}

void AppendRows(Context& context, ConstTensor from, const DeviceSpan* spans, int span_count, int64_t page_tokens,
                const Tensor& pages) {
  const int64_t rows = from.dim(0), width = from.dim(1);
  if (pages.dtype == DType::kInt8) {
    Launch(static_cast<Stream>(context.stream()), AppendBytesKernel,
           {dim3(static_cast<unsigned>(rows)), RowBlock(width, /*vector=*/1)}, static_cast<const uint8_t*>(from.data),
           spans, span_count, width, page_tokens, static_cast<uint8_t*>(pages.data));
    return;
  }
  VisitRows(from, pages, width, [&](auto from_tag, auto to_tag, auto vector) {
    using From = typename decltype(from_tag)::type;
    using To = typename decltype(to_tag)::type;
    Launch(static_cast<Stream>(context.stream()), AppendKernel<From, To, decltype(vector)::value>,
           {dim3(static_cast<unsigned>(rows)), RowBlock(width, vector)}, static_cast<const From*>(from.data), spans,
           span_count, width, page_tokens, static_cast<To*>(pages.data));
  });
}

}  // namespace

void Embed(Context& context, ConstTensor table, absl::Span<const int32_t> ids, Tensor out) {
  const Context::Frame frame(context);
  const int32_t* device_ids = context.UploadShared(ids);
  const int64_t width = table.dim(1);
  const bool vectors = MovesVectors(width, table.data, out.data);
  VisitFloatType(table.dtype, [&](auto tag) {
    using From = typename decltype(tag)::type;
    const int vector = vectors ? 4 : 1;
    Launch(static_cast<Stream>(context.stream()), vectors ? EmbedKernel<From, 4> : EmbedKernel<From, 1>,
           {dim3(static_cast<unsigned>(ids.size())), RowBlock(width, vector)}, static_cast<const From*>(table.data),
           device_ids, width, out.f32());
  });
}

void CopyRows(Context& context, ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) {
  const Context::Frame frame(context);
  const int64_t width = from.dim(1);
  if (from.data == to.data) {
    // Rows may overwrite others that are still to be copied: all are read before any is written.
    const int64_t bytes = width * SizeOf(from.dtype);
    Tensor aside{nullptr, from.dtype, {static_cast<int64_t>(copies.size()), width}};
    aside.data = context.Scratch(bytes * static_cast<int64_t>(copies.size()));
    std::vector<RowCopy> out, back;
    for (const RowCopy& copy : copies) {
      const auto row = static_cast<int64_t>(out.size());
      out.push_back({copy.from, row});
      back.push_back({row, copy.to});
    }
    CopyRows(context, from, out, aside);
    CopyRows(context, aside, back, to);
    return;
  }
  const RowCopy* device_copies = context.Upload(copies);
  VisitRows(from, to, width, [&](auto from_tag, auto to_tag, auto vector) {
    using From = typename decltype(from_tag)::type;
    using To = typename decltype(to_tag)::type;
    Launch(static_cast<Stream>(context.stream()), CopyRowsKernel<From, To, decltype(vector)::value>,
           {dim3(static_cast<unsigned>(copies.size())), RowBlock(width, vector)}, static_cast<const From*>(from.data),
           device_copies, width, static_cast<To*>(to.data));
  });
}

void Convert(Context& context, ConstTensor from, Tensor to) {
  if (to.dtype == DType::kInt8) {
    const int64_t rows = from.dim(0), blocks = CeilDiv<int64_t>(rows, kThreads / kWarp);
    VisitFloatType(from.dtype, [&](auto tag) {
      using From = typename decltype(tag)::type;
      Launch(static_cast<Stream>(context.stream()), QuantizeKernel<From>,
             {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, static_cast<const From*>(from.data), rows,
             from.dim(1), static_cast<uint8_t*>(to.data));
    });
    return;
  }
  const int64_t count = from.shape.elements();
  VisitRows(from, to, count, [&](auto from_tag, auto to_tag, auto vector) {
    using From = typename decltype(from_tag)::type;
    using To = typename decltype(to_tag)::type;
    const int64_t blocks = CeilDiv<int64_t>(count, int64_t{kThreads} * vector);
    Launch(static_cast<Stream>(context.stream()), ConvertKernel<From, To, decltype(vector)::value>,
           {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, int64_t{32} * context.multiprocessors()))),
            dim3(kThreads)},
           static_cast<const From*>(from.data), count, static_cast<To*>(to.data));
  });
}

void GoldAppend(Context& context, absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans,
                const GoldCache& cache) {
  const Context::Frame frame(context);
  const int span_count = static_cast<int>(spans.size()), rows = static_cast<int>(ids.size());
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens());
  AppendRows(context, c, device_spans, span_count, cache.page_tokens(), cache.c);
  const int32_t* device_ids = context.UploadShared(ids);
  const LaunchShape shape{dim3(static_cast<unsigned>(CeilDiv(rows, kThreads))), dim3(kThreads)};
  const auto stream = static_cast<Stream>(context.stream());
  if (cache.ids.dtype == DType::kU16) {
    Launch(stream, AppendIdsKernel<uint16_t>, shape, device_ids, device_spans, span_count, rows, cache.page_tokens(),
           static_cast<uint16_t*>(cache.ids.data));
  } else {
    Launch(stream, AppendIdsKernel<int32_t>, shape, device_ids, device_spans, span_count, rows, cache.page_tokens(),
           static_cast<int32_t*>(cache.ids.data));
  }
}

void KvAppend(Context& context, ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) {
  const Context::Frame frame(context);
  const int span_count = static_cast<int>(spans.size());
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens());
  AppendRows(context, k, device_spans, span_count, cache.page_tokens(), cache.keys);
  AppendRows(context, v, device_spans, span_count, cache.page_tokens(), cache.values);
}

}  // namespace goldfinch::cuda
