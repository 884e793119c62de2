// A checkpoint's tensors as the reference takes them.
#ifndef GOLDFINCH_TESTS_PARITY_REFERENCE_WEIGHTS_H_
#define GOLDFINCH_TESTS_PARITY_REFERENCE_WEIGHTS_H_

#include "tests/parity/reference_model.h"
#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

ReferenceWeights ReadReferenceWeights(const Checkpoint& checkpoint);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_PARITY_REFERENCE_WEIGHTS_H_
