// What a token costs a model, counted from the tensors of its checkpoint.
#ifndef GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_
#define GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_

#include "worker/checkpoint/checkpoint.h"
#include "worker/model.h"

namespace goldfinch {

struct ModelCosts {
  double prefill_flops = 0;  // multiply-adds, times two, in the matrix products of the Finch-side layers
  double decode_bytes = 0;   // of the weights that one decoded token reads
};

ModelCosts CostsOf(const Checkpoint& checkpoint, const ModelShape& shape);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_MODEL_COSTS_H_
