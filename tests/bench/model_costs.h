// What a token costs a model, counted from the tensors of its checkpoint.
#ifndef GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_
#define GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_

#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"

namespace goldfinch {

struct ModelCosts {
  double prefill_flops = 0;  // multiply-adds, times two, in the matrix products of the Finch-side layers
  double decode_bytes = 0;   // of the weights that one decoded token reads, embedding aside
  // The part of decode_bytes that is stored by inputs (kernels/quantize.h): only the weights of inputs that are not
  // zero must be read.
  double by_input_bytes = 0;
  // Multiply-adds, times two, that one position of context costs one token in all GOLD layers: to rebuild keys and
  // values from the compressed cache, and from the rows of the shared tier. What is looked up by token id is not in it.
  double gold_rebuild_flops = 0;
  double gold_spread_flops = 0;
};

ModelCosts CostsOf(const Checkpoint& checkpoint, const ModelShape& shape);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_
