#include "worker/checkpoint/layout.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "base/safe_text.h"

namespace goldfinch {
namespace {

std::string Dims(const std::array<int64_t, 4>& dims, int rank) {
  return absl::StrCat("[", absl::StrJoin(absl::MakeSpan(dims.data(), rank), ", "), "]");
}

Shape ToShape(const StoredView& view) {
  switch (view.rank) {
    case 0:
      return {1};
    case 1:
      return {view.sizes[0]};
    case 2:
      return {view.sizes[0], view.sizes[1]};
    case 3:
      return {view.sizes[0], view.sizes[1], view.sizes[2]};
    default:
      return {view.sizes[0], view.sizes[1], view.sizes[2], view.sizes[3]};
  }
}

bool IsDense(const StoredView& view) {
  StoredView dense = view;
  SetDenseStrides(&dense);
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.sizes[axis] != 1 && view.strides[axis] != dense.strides[axis]) return false;
  }
  return true;
}

// How far the last element is from the first; none if a stride is negative or a number overflows.
std::optional<int64_t> ReachOf(const StoredView& view) {
  int64_t reach = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    int64_t step;
    if (view.strides[axis] < 0 || __builtin_mul_overflow(view.sizes[axis] - 1, view.strides[axis], &step) ||
        __builtin_add_overflow(reach, step, &reach)) {
      return std::nullopt;
    }
  }
  return reach;
}

// Copies `view` of `from`, which holds all of it, to `to`, row-major. Either may be unaligned.
template <int kElementBytes>
void CopyDense(const char* from, const StoredView& view, char* to) {
  std::array<int64_t, 4> sizes = {1, 1, 1, 1};  // the axes of the view last
  std::array<int64_t, 4> strides = {};
  std::copy_n(view.sizes.begin(), view.rank, sizes.end() - view.rank);
  std::copy_n(view.strides.begin(), view.rank, strides.end() - view.rank);
  from += view.offset_elements * kElementBytes;
  for (int64_t a = 0; a < sizes[0]; ++a) {
    for (int64_t b = 0; b < sizes[1]; ++b) {
      for (int64_t c = 0; c < sizes[2]; ++c) {
        const char* row = from + (a * strides[0] + b * strides[1] + c * strides[2]) * kElementBytes;
        if (strides[3] == 1) {
          std::memcpy(to, row, sizes[3] * kElementBytes);
        } else {
          for (int64_t d = 0; d < sizes[3]; ++d) {
            std::memcpy(to + d * kElementBytes, row + d * strides[3] * kElementBytes, kElementBytes);
          }
        }
        to += sizes[3] * kElementBytes;
      }
    }
  }
}

}  // namespace

void SetDenseStrides(StoredView* view) {
  int64_t stride = 1;
  for (int axis = view->rank - 1; axis >= 0; --axis) {
    view->strides[axis] = stride;
    // Unsigned: behind a size of 0 the others may be anything.
    stride = static_cast<int64_t>(static_cast<uint64_t>(stride) * static_cast<uint64_t>(view->sizes[axis]));
  }
}

std::optional<int64_t> ElementsOf(const StoredView& view) {
  int64_t elements = 1;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.sizes[axis] < 0 || __builtin_mul_overflow(elements, view.sizes[axis], &elements)) return std::nullopt;
  }
  return elements;
}

absl::Status CheckpointLayout::AddTensor(std::string_view name, int part, const StoredView& view,
                                         int64_t owned_bytes_max) {
  GF_CHECK(view.rank >= 0 && view.rank <= 4);
  const FilePart& source = parts[part];
  const DType dtype = source.dtype.value();
  const int64_t source_elements = static_cast<int64_t>(source.bytes.size()) / SizeOf(dtype);
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(name), " of shape ", Dims(view.sizes, view.rank), " ", what...));
  };

  const std::optional<int64_t> elements = ElementsOf(view);
  if (!elements) return error("has a size that is negative or overflows");
  if (*elements == 0) return error("is empty");
  // A view with more elements than its storage repeats some: nothing that weights are, and a small file could ask for
  // unlimited memory that way.
  if (*elements > source_elements) {
    return error("has ", *elements, " elements, but ", Quoted(source.name), " has ", source_elements);
  }
  const std::optional<int64_t> reach = ReachOf(view);
  if (!reach) return error("has strides ", Dims(view.strides, view.rank), ", which are negative or overflow");
  int64_t last;
  if (view.offset_elements < 0 || __builtin_add_overflow(view.offset_elements, *reach, &last) ||
      last >= source_elements) {
    return error("with strides ", Dims(view.strides, view.rank), " at offset ", view.offset_elements, " lies outside ",
                 Quoted(source.name), ", which has ", source_elements, " elements");
  }

  StoredTensor tensor{std::string(name), part, {nullptr, dtype, ToShape(view)}};
  const char* first = source.bytes.data() + view.offset_elements * SizeOf(dtype);
  if (IsDense(view) && reinterpret_cast<uintptr_t>(first) % SizeOf(dtype) == 0) {
    tensor.data.data = first;
  } else {
    const int64_t bytes = *elements * SizeOf(dtype);
    if (bytes > owned_bytes_max - owned_bytes) {
      return error("must be copied, and the copies up to it take ", owned_bytes + bytes, " bytes; the limit is ",
                   owned_bytes_max);
    }
    char* memory = static_cast<char*>(::operator new(bytes, AlignedDelete::kAlignment, std::nothrow));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of tensor ", Quoted(name)));
    }
    owned.emplace_back(memory);
    owned_bytes += bytes;
    switch (SizeOf(dtype)) {
      case 1:
        CopyDense<1>(source.bytes.data(), view, memory);
        break;
      case 2:
        CopyDense<2>(source.bytes.data(), view, memory);
        break;
      default:
        CopyDense<4>(source.bytes.data(), view, memory);
    }
    tensor.data.data = memory;
  }
  tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

}  // namespace goldfinch
