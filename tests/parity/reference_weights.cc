#include "tests/parity/reference_weights.h"

#include <vector>

#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {

ReferenceWeights ReadReferenceWeights(const Checkpoint& checkpoint) {
  ReferenceWeights weights;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    ReferenceTensor& copy = weights[tensor.name];
    for (int axis = 0; axis < tensor.data.shape.rank(); ++axis) copy.shape.push_back(tensor.data.dim(axis));
    const std::vector<float> values = DecodeElements(tensor.data);
    copy.values.assign(values.begin(), values.end());
  }
  return weights;
}

}  // namespace goldfinch
