#include "clients/cli/serve/plan_table.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/units.h"
#include "clients/cli/terminal/columns.h"

namespace goldfinch {
namespace {

using Rows = std::vector<std::vector<std::string>>;

int LayersOf(const PlannedPipeline& plan) { return static_cast<int>(plan.resources[0].model->layers.size()); }

std::string Seconds(double seconds) { return absl::StrFormat("%.3g s", seconds); }

std::string Rate(double tokens_per_second) {
  constexpr double kWhole = 100;  // from here on fractions say nothing
  if (tokens_per_second < kWhole || tokens_per_second > 1e15) return absl::StrFormat("%.3g/s", tokens_per_second);
  return absl::StrCat(WithCommas(static_cast<int64_t>(tokens_per_second)), "/s");
}

// "71 % full, 29 % shared": of the positions that the traffic has.
std::string Tiers(const KeptTokens& kept) {
  const double all = kept.compressed + kept.shared + kept.full;
  if (all <= 0) return "-";
  std::string text;
  const auto add = [&](double part, const char* name) {
    if (part / all < 0.005) return;
    absl::StrAppendFormat(&text, "%s%.0f%% %s", text.empty() ? "" : ", ", 100 * part / all, name);
  };
  add(kept.full, "full");
  add(kept.shared, "shared");
  add(kept.compressed, "compressed");
  return text;
}

std::string SlowestOf(const SplitEstimate& split) {
  return absl::StrCat(split.slowest_sends ? "link after stage " : "stage ", split.slowest_stage);
}

// What crosses the boundary before a stage: "258 B a token and 172 kB" of a request.
std::string Received(const SplitEstimate& split, int stage) {
  if (stage == 0) return "-";
  const ReceivedBytes& bytes = split.received[stage];
  const double tokens = static_cast<double>(split.traffic.prompt_tokens + split.traffic.output_tokens - 1);
  const auto each = [&](int64_t part) { return absl::StrFormat("%.4g", static_cast<double>(part) / tokens); };
  return absl::StrCat(HumanBytes(bytes.total()), ": hidden ", each(bytes.hidden), ", compressed ",
                      each(bytes.compressed), ", ids ", each(bytes.ids), " B a token");
}

}  // namespace

std::string PlanTable(const PlannedPipeline& plan) {
  const ExpectedTraffic& traffic = plan.splits[0].traffic;
  const int layers = LayersOf(plan);
  std::string text = absl::StrCat("workers  ", plan.workers, "\n");
  absl::StrAppend(&text, "links    ", plan.links, "\n");
  absl::StrAppend(&text, "traffic  ", WithCommas(traffic.sequences), " sequences at a time, each with a prompt of ",
                  WithCommas(traffic.prompt_tokens), " tokens and an output of ", WithCommas(traffic.output_tokens),
                  ", in a context of ", WithCommas(traffic.context_tokens), "\n");
  absl::StrAppend(&text, "split    ", SplitText(plan.partition.first_layers, layers));
  if (!plan.partition.why.empty()) absl::StrAppend(&text, ": ", plan.partition.why);
  absl::StrAppend(&text, "\n\n");

  Rows rows = {{"split", "time", "pre-fill", "decode", "first token", "a request", "slowest"}};
  for (size_t i = 0; i < plan.splits.size(); ++i) {
    const SplitEstimate& split = plan.splits[i];
    rows.push_back({SplitText(split.first_layers, layers),
                    i == 0 ? "as chosen" : absl::StrFormat("%+.1f %%", 100 * (split.cost / plan.splits[0].cost - 1)),
                    Rate(split.prefill_tokens_per_second), Rate(split.decode_tokens_per_second),
                    Seconds(split.first_token_seconds), Seconds(split.request_seconds), SlowestOf(split)});
  }
  absl::StrAppend(&text, Columns(rows));
  for (const SplitEstimate& split : plan.splits) {
    absl::StrAppend(&text, "\n", SplitText(split.first_layers, layers), "\n");
    Rows stages = {{"stage", "layers", "computes", "sends", "memory", "GOLD tiers", "receives for a request"}};
    for (size_t stage = 0; stage < split.stages.size(); ++stage) {
      const StageCost& cost = split.stages[stage];
      const int end = stage + 1 < split.stages.size() ? split.first_layers[stage + 1] : layers;
      stages.push_back(
          {absl::StrCat(stage), absl::StrCat(split.first_layers[stage], "-", end - 1), Seconds(cost.compute_request),
           Seconds(cost.send_request),
           absl::StrCat(HumanBytes(cost.memory_bytes), " of ", HumanBytes(plan.resources[stage].memory_bytes)),
           Tiers(cost.kept), Received(split, static_cast<int>(stage))});
    }
    absl::StrAppend(&text, Columns(stages));
  }
  return text;
}

nlohmann::json PlanJson(const PlannedPipeline& plan) {
  const ExpectedTraffic& traffic = plan.splits[0].traffic;
  const int layers = LayersOf(plan);
  nlohmann::json json = {{"workers", plan.workers},
                         {"links", plan.links},
                         {"why", plan.partition.why},
                         {"max_sequences", plan.partition.max_sequences},
                         {"cache_tokens", plan.partition.cache_tokens},
                         {"traffic",
                          {{"prompt_tokens", traffic.prompt_tokens},
                           {"output_tokens", traffic.output_tokens},
                           {"context_tokens", traffic.context_tokens},
                           {"sequences", traffic.sequences}}},
                         {"splits", nlohmann::json::array()}};
  for (const SplitEstimate& split : plan.splits) {
    nlohmann::json of_split = {{"split", SplitText(split.first_layers, layers)},
                               {"first_layers", split.first_layers},
                               {"cost_seconds", split.cost},
                               {"request_seconds", split.request_seconds},
                               {"first_token_seconds", split.first_token_seconds},
                               {"prefill_tokens_per_second", split.prefill_tokens_per_second},
                               {"decode_tokens_per_second", split.decode_tokens_per_second},
                               {"slowest", SlowestOf(split)},
                               {"stages", nlohmann::json::array()}};
    for (size_t stage = 0; stage < split.stages.size(); ++stage) {
      const StageCost& cost = split.stages[stage];
      const ReceivedBytes& bytes = split.received[stage];
      of_split["stages"].push_back(
          {{"compute_seconds", cost.compute_request},
           {"send_seconds", cost.send_request},
           {"memory_bytes", cost.memory_bytes},
           {"memory_bytes_max", plan.resources[stage].memory_bytes},
           {"received", {{"hidden", bytes.hidden}, {"compressed", bytes.compressed}, {"ids", bytes.ids}}}});
    }
    json["splits"].push_back(std::move(of_split));
  }
  return json;
}

}  // namespace goldfinch
