#include "coordinator/shelves/shelf_group.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/stage_extent.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::Described;
using cluster::v1::PartDescription;
using Kind = StatePartKind;

template <class... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("parts: ", parts...));
}

auto OrderOf(const ContextPart& part) { return std::tie(part.layer, part.kind); }

std::string NameOf(const ContextPart& part) { return absl::StrCat(KindName(part.kind), " of layer ", part.layer); }

// What one sequence or one token has; the limits of messages keep it below 2^28.
int64_t BytesOf(const ContextPart& part) {
  int64_t bytes = BytesOf(part.type);
  for (const int64_t number : part.shape) bytes *= number;
  return bytes;
}

absl::Status CheckIds(const PartDescription& part, const Described& model, int rows_layer) {
  const char* const type = IdTypeName(model.vocab_size());
  if (static_cast<int>(part.part().layer()) == rows_layer && part.dtype() == type && part.shape().empty()) {
    return absl::OkStatus();
  }
  return Bad("ids of layer ", part.part().layer(), " are ", part.dtype(), " of ", part.shape_size(), " axes, expected ",
             type, " without axes, of layer ", rows_layer);
}

absl::Status CheckLogits(const PartDescription& part, const Described& model) {
  const bool good = static_cast<int>(part.part().layer()) + 1 == model.layers_size() && part.dtype() == "f32" &&
                    part.shape_size() == 1 && part.shape(0) == model.vocab_size();
  return good ? absl::OkStatus()
              : Bad("logits are ", part.dtype(), " of layer ", part.part().layer(), ", expected f32 [",
                    model.vocab_size(), "] of layer ", model.layers_size() - 1);
}

}  // namespace

absl::StatusOr<ShelfStage> ReadShelfStage(const cluster::v1::Joined& message, const Described& model, int first_layer,
                                          int last_layer) {
  ShelfStage stage;
  if (message.parts().empty()) return stage;
  const StageExtent extent = {.model_layers = model.layers_size(),
                              .finch_layers = model.layers_size() - static_cast<int>(model.gold_layers()),
                              .first_layer = first_layer,
                              .last_layer = last_layer};
  const int rows_layer = extent.finch_layers - 1;
  int ids = 0, logits = 0;
  for (const PartDescription& from : message.parts()) {
    const std::optional<Kind> kind = ParseKindName(from.part().kind());
    if (kind == Kind::kIds) {
      GF_RETURN_IF_ERROR(CheckIds(from, model, rows_layer));
      ++ids;
      continue;
    }
    if (kind == Kind::kLogits) {
      GF_RETURN_IF_ERROR(CheckLogits(from, model));
      ++logits;
      continue;
    }
    const std::optional<ElementType> type = ParseElementType(from.dtype());
    if (!kind || !type) {
      return Bad("a part of layer ", from.part().layer(), " has unknown kind \"", SafeText(from.part().kind()),
                 "\" or type \"", SafeText(from.dtype()), "\"");
    }
    if (from.shape().empty()) return Bad(from.part().kind(), " of layer ", from.part().layer(), " has no shape");
    stage.parts.push_back({static_cast<int>(from.part().layer()), *kind, *type, {}});
    stage.parts.back().shape.assign(from.shape().begin(), from.shape().end());
  }
  std::sort(stage.parts.begin(), stage.parts.end(),
            [](const auto& a, const auto& b) { return OrderOf(a) < OrderOf(b); });
  stage.has_logits = logits > 0;

  const int ids_wanted = extent.has_gold() ? 1 : 0, logits_wanted = extent.has_head() ? 1 : 0;
  if (ids != ids_wanted || logits != logits_wanted) {
    return Bad("the stage lists ids ", ids, " times and logits ", logits, " times, expected ", ids_wanted, " and ",
               logits_wanted);
  }
  std::map<int, std::pair<int64_t, int64_t>> bytes;  // by layer: of a sequence, of a token
  int64_t row_bytes = 0;
  const ContextPart* before = nullptr;
  for (const ContextPart& part : stage.parts) {
    if (before != nullptr && OrderOf(*before) == OrderOf(part)) return Bad(NameOf(part), " appears twice");
    before = &part;
    if (part.kind == Kind::kRows) {
      if (!extent.has_gold() || part.layer != rows_layer) return Bad(NameOf(part), " is no part of this stage");
      row_bytes = BytesOf(part);
      continue;
    }
    if (!extent.has_layer(part.layer)) {
      return Bad(NameOf(part), " is no part of this stage, which has the layers ", first_layer, " to ", last_layer - 1);
    }
    (part.per_token() ? bytes[part.layer].second : bytes[part.layer].first) += BytesOf(part);
  }
  for (int layer = first_layer; layer < last_layer; ++layer) {
    const auto [sequence, token] = bytes[layer];
    const auto state_bytes = static_cast<int64_t>(model.layers(layer).state_bytes()),
               cache_bytes = static_cast<int64_t>(model.layers(layer).cache_bytes_per_token());
    if (sequence == state_bytes && token == cache_bytes) continue;
    return Bad("layer ", layer, " has ", sequence, " bytes of a sequence and ", token, " of a token, expected ",
               state_bytes, " and ", cache_bytes);
  }
  const auto compressed = static_cast<int64_t>(model.compressed_bytes_per_token());
  if (extent.has_gold() && row_bytes + IdBytes(model.vocab_size()) != compressed) {
    return Bad("compressed rows have ", row_bytes, " bytes beside their ids, expected ", compressed, " with them");
  }
  return stage;
}

absl::StatusOr<ShelfGroup> MakeShelfGroup(ContextIdentity identity, int64_t vocab_size, int layers,
                                          std::vector<ShelfStage> stages) {
  ShelfGroup group;
  group.model.identity = std::move(identity);
  group.model.vocab_size = vocab_size;
  group.logits_layer = layers - 1;
  std::vector<ContextPart>& parts = group.model.parts;
  for (const ShelfStage& stage : stages) parts.insert(parts.end(), stage.parts.begin(), stage.parts.end());
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return OrderOf(a) < OrderOf(b); });
  // The compressed rows are those of several stages.
  parts.erase(std::unique(parts.begin(), parts.end()), parts.end());
  for (size_t i = 1; i < parts.size(); ++i) {
    if (OrderOf(parts[i - 1]) == OrderOf(parts[i])) return Bad("stages disagree on ", NameOf(parts[i]));
  }
  group.stages = std::move(stages);
  return group;
}

}  // namespace goldfinch
