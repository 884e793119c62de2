// The one set of tensor names that the rest of the engine knows: the authors' ("blocks.0.att.key.weight").
#ifndef GOLDFINCH_WORKER_CHECKPOINT_NAMES_H_
#define GOLDFINCH_WORKER_CHECKPOINT_NAMES_H_

#include <string>
#include <string_view>

namespace goldfinch {

// The authors' name of a tensor. Prefixes that frameworks for training put before the names of a whole model
// ("_forward_module.", "module.", "model.", "_orig_mod.") are taken off. Finch and Eagle models are also published in a
// second naming scheme, in which every name but "head.weight" starts with "rwkv."; other names come back unchanged. Two
// names of one file may map to one: the caller's error.
std::string CanonicalName(std::string_view name);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_NAMES_H_
