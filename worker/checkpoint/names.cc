#include "worker/checkpoint/names.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace goldfinch {
namespace {

// Whole dotted components, so that "attention" never matches inside another word.
constexpr std::pair<std::string_view, std::string_view> kComponents[] = {
    {"embeddings", "emb"},
    {"pre_ln", "ln0"},
    {"attention", "att"},
    {"feed_forward", "ffn"},
    // Eagle's mixes, of both mixers. Finch has the authors' names (time_maa_*) in either scheme.
    {"time_mix_key", "time_mix_k"},
    {"time_mix_value", "time_mix_v"},
    {"time_mix_receptance", "time_mix_r"},
    {"time_mix_gate", "time_mix_g"},
};

// What DeepSpeed, distributed data parallel training, Hugging Face's libraries and torch.compile put before each name.
constexpr std::string_view kFrameworkPrefixes[] = {"_forward_module.", "module.", "model.", "_orig_mod."};

// They may be nested.
std::string_view WithoutFrameworkPrefixes(std::string_view name) {
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view prefix : kFrameworkPrefixes) {
      if (!name.starts_with(prefix)) continue;
      name.remove_prefix(prefix.size());
      found = true;
    }
  }
  return name;
}

}  // namespace

std::string CanonicalName(std::string_view name) {
  name = WithoutFrameworkPrefixes(name);
  constexpr std::string_view kPrefix = "rwkv.";
  if (!name.starts_with(kPrefix)) return std::string(name);
  std::vector<std::string> components = absl::StrSplit(std::string(name.substr(kPrefix.size())), '.');
  for (std::string& component : components) {
    for (const auto& [from, to] : kComponents) {
      if (component == from) {
        component = to;
        break;
      }
    }
  }
  return absl::StrJoin(components, ".");
}

}  // namespace goldfinch
