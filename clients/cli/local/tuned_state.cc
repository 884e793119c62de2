#include "clients/cli/local/tuned_state.h"

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "coordinator/store/exchange.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/time_state.h"

namespace goldfinch {
namespace {

bool BeginsLikeZip(const std::string& path) {
  char begin[2] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(begin, sizeof(begin)) && begin[0] == 'P' && begin[1] == 'K';
}

}  // namespace

bool IsTunedState(const std::string& path) {
  if (BeginsLikeZip(path)) return true;
  const auto file = Checkpoint::Open(path);
  return file.ok() && HoldsTimeStatesAlone(**file);
}

absl::StatusOr<std::string> TunedStateExchange(const std::string& path, const ContextModel& model) {
  std::vector<WkvLayer> layers;
  for (const ContextPart& part : model.parts) {
    if (part.kind != StatePartKind::kWkv) continue;
    if (part.type != ElementType::kF32 || part.shape.size() != 3 || part.shape[1] != part.shape[2]) {
      return absl::FailedPreconditionError(
          absl::StrCat("the WKV state of layer ", part.layer, " is not of the kind that this program knows"));
    }
    layers.push_back({part.layer, part.shape[0], part.shape[1]});
  }
  if (layers.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        SafeText(path), ": a tuned state is for recurrent layers (Eagle, Finch, Finch-C2), and this model has none"));
  }
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> file, Checkpoint::Open(path));
  GF_ASSIGN_OR_RETURN(const std::vector<std::vector<float>> states, ReadTimeStates(*file, layers));
  SegmentSpec segment;
  segment.model = model;
  segment.has_snapshot = true;
  GF_ASSIGN_OR_RETURN(const SegmentLayout layout, LayOut(segment));
  std::vector<std::string> sections;
  size_t next = 0;  // of the states, which are in the order of the parts
  for (const SegmentSection& section : layout.sections) {
    const bool is_part = section.what == SegmentSection::What::kPart;
    if (is_part && model.parts[section.part].kind == StatePartKind::kWkv) {
      const std::vector<float>& state = states[next++];
      sections.emplace_back(reinterpret_cast<const char*>(state.data()), state.size() * sizeof(float));
    } else {
      sections.emplace_back(static_cast<size_t>(section.bytes), '\0');
    }
  }
  return ExchangeFile(segment, sections);
}

}  // namespace goldfinch
