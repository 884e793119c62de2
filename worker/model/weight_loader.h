// Takes the tensors of a checkpoint one by one into the memory of a back end, checking shapes. Twice over the same
// tensors: first to learn how much memory they take, then into one allocation of so much.
#ifndef GOLDFINCH_WORKER_MODEL_WEIGHT_LOADER_H_
#define GOLDFINCH_WORKER_MODEL_WEIGHT_LOADER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

// Getters return an empty tensor once anything has failed; look at status() at the end. The first error is kept.
class WeightLoader {
 public:
  // Measures: no value is read, tensors have their types and shapes and addresses that mean nothing, values are zeros.
  // `in_place`: for a back end that reads weights in place.
  WeightLoader(const Checkpoint& checkpoint, bool in_place) : checkpoint_(checkpoint), in_place_(in_place) {}
  // Loads into `arena`, which outlives the tensors: memory of the back end of at least the copied_bytes() of a loader
  // that measured the same tensors in the same order. What it copies from the file passes through the memory of this
  // process a part at a time.
  WeightLoader(Backend& backend, const Checkpoint& checkpoint, void* arena)
      : checkpoint_(checkpoint), in_place_(backend.reads_weights_in_place()), backend_(&backend), arena_(arena) {}

  // Names given below are relative to this prefix: "blocks.3.att.".
  void SetPrefix(std::string prefix) { prefix_ = std::move(prefix); }

  bool Has(std::string_view name) const;
  // The tensor as it is in the file, not taken; null if there is none.
  const CheckpointTensor* Peek(std::string_view name) const;
  // Axis of a tensor: 0 and an error if it is missing or has no such axis.
  int64_t Dim(std::string_view name, int axis);

  // A vector of n elements, whatever its axes ([1, 1, D] in the files), as [n] fp32.
  ConstTensor Vector(std::string_view name, int64_t n);
  // Vectors of n elements stacked to [names, n] fp32.
  ConstTensor Stack(const std::vector<std::string>& names, int64_t n);
  NormWeights Norm(std::string_view name, int64_t n);
  // A linear layer's weight [out, in], in place where the back end can.
  Matrix Linear(std::string_view name, int64_t out, int64_t in);
  // A LoRA factor [in, out]; -1: any.
  Matrix Lora(std::string_view name, int64_t in, int64_t out);
  // A tensor of any rank, in place where the back end can.
  ConstTensor Raw(std::string_view name, const Shape& shape);
  // Columns [begin, end) of a matrix [out, in] as a matrix of their own.
  Matrix LinearColumns(std::string_view name, int64_t out, int64_t in, int64_t begin, int64_t end);
  // fp32 values computed on the host, as a tensor of the back end.
  ConstTensor Floats(const std::vector<float>& values, const Shape& shape);
  // The elements of a tensor as fp32; empty and an error if it has not n elements.
  std::vector<float> Values(std::string_view name, int64_t n);
  // Marks a tensor that is in the file but not needed.
  void Ignore(std::string_view name);

  // Bytes that are copied into the arena so far, each tensor in whole units of kTensorAlignment.
  int64_t copied_bytes() const { return copied_bytes_; }
  // The same, and the bytes that are read in place.
  int64_t weight_bytes() const { return copied_bytes_ + in_place_bytes_; }

  static constexpr int64_t kTensorAlignment = 256;

  void Fail(absl::Status status);
  const absl::Status& status() const { return status_; }
  // Marks every tensor whose full name starts so: it belongs to another stage.
  void IgnorePrefix(std::string_view full_prefix);
  // Adds an error if the file has tensors that nobody took.
  void CheckAllTaken();

 private:
  const CheckpointTensor* Take(std::string_view name);
  // The same, but an error if it is quantized.
  const CheckpointTensor* TakeFloats(std::string_view name);
  ConstTensor Import(ConstTensor host);
  // The next part of the arena.
  Tensor Place(DType dtype, const Shape& shape);
  bool measures() const { return backend_ == nullptr; }
  std::string FullName(std::string_view name) const;
  void FailShape(const CheckpointTensor& tensor, const std::string& expected);

  const Checkpoint& checkpoint_;
  const bool in_place_;
  Backend* const backend_ = nullptr;  // null: measures
  void* const arena_ = nullptr;
  int64_t copied_bytes_ = 0;
  int64_t in_place_bytes_ = 0;
  std::string prefix_;
  absl::flat_hash_set<std::string> taken_;
  absl::Status status_;
};

// The elements of a host tensor as fp32.
std::vector<float> ToFloats(const ConstTensor& host);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_WEIGHT_LOADER_H_
