#include "clients/cli/load_test/load_test_report.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using scenario::Aim;
using scenario::Measure;

// What each measure of load_test_scenario.proto is taken from.
struct MeasureSource {
  Measure measure;
  const char* name;  // for people
  const LatencyHistogram& (LoadTestStats::*latencies)() const;
  double share;
};

constexpr MeasureSource kMeasures[] = {
    {scenario::TIME_TO_FIRST_TOKEN_P50, "time to first token, p50", &LoadTestStats::first_token, 0.5},
    {scenario::TIME_TO_FIRST_TOKEN_P99, "time to first token, p99", &LoadTestStats::first_token, 0.99},
    {scenario::INTER_TOKEN_P50, "inter-token, p50", &LoadTestStats::inter_token, 0.5},
    {scenario::INTER_TOKEN_P99, "inter-token, p99", &LoadTestStats::inter_token, 0.99},
};

const MeasureSource& SourceOf(Measure measure) {
  return *std::find_if(std::begin(kMeasures), std::end(kMeasures),
                       [&](const MeasureSource& source) { return source.measure == measure; });
}

std::optional<double> Measured(const MeasureSource& source, const LoadTestStats& stats) {
  const LatencyHistogram& latencies = (stats.*source.latencies)();
  if (latencies.count() == 0) return std::nullopt;
  return latencies.Quantile(source.share);
}

std::optional<double> TimesQuiet(const MeasureSource& source, const GroupResult& group) {
  if (!group.quiet) return std::nullopt;
  const std::optional<double> quiet = Measured(source, *group.quiet);
  const std::optional<double> together = Measured(source, group.together);
  if (!quiet || !together || *quiet <= 0) return std::nullopt;
  return *together / *quiet;
}

double PerSecond(int64_t amount, double seconds) { return seconds > 0 ? static_cast<double>(amount) / seconds : 0; }

std::string Seconds(const std::optional<double>& seconds) { return seconds ? HumanSeconds(*seconds) : "-"; }

nlohmann::json OrNull(const std::optional<double>& number) {
  return number ? nlohmann::json(*number) : nlohmann::json();
}

double IdleShare(uint64_t used, uint64_t all) {
  return all > 0 ? std::max(0.0, 1 - static_cast<double>(used) / static_cast<double>(all)) : 1;
}

std::string Percent(double share) { return absl::StrFormat("%.0f %%", 100 * share); }

void AppendRow(const std::string& group, const std::string& run, const LoadTestStats& stats, std::string* table) {
  absl::StrAppendFormat(table, "%-16s %-11s %9s %7s", group, run, WithCommas(stats.finished()),
                        WithCommas(stats.failed()));
  for (const MeasureSource& source : kMeasures) absl::StrAppendFormat(table, " %9s", Seconds(Measured(source, stats)));
  absl::StrAppendFormat(table, " %9.4g %9.4g\n", PerSecond(stats.prompt_tokens(), stats.seconds()),
                        PerSecond(stats.output_tokens(), stats.seconds()));
}

void AppendGroup(const GroupResult& group, std::string* table) {
  const std::string& name = group.settings.name();
  if (!group.quiet) {
    AppendRow(name, "background", group.together, table);
    return;
  }
  AppendRow(name, "quiet", *group.quiet, table);
  AppendRow("", "together", group.together, table);
  absl::StrAppendFormat(table, "%-16s %-11s %9s %7s", "", "times quiet", "", "");
  for (const MeasureSource& source : kMeasures) {
    const std::optional<double> times = TimesQuiet(source, group);
    absl::StrAppendFormat(table, " %9s", times ? absl::StrFormat("%.3g", *times) : "-");
  }
  absl::StrAppend(table, "\n");
}

void AppendErrors(const std::string& group, const LoadTestStats& stats, std::string* table) {
  for (const auto& [code, errors] : stats.errors()) {
    absl::StrAppendFormat(table, "  %s %s in %s, the first: %s\n", WithCommas(errors.count), code, group,
                          SafeText(errors.message));
  }
}

nlohmann::json StatsJson(const LoadTestStats& stats) {
  nlohmann::json json = {{"requests", stats.finished()},
                         {"completed", stats.completed()},
                         {"cut", stats.cut()},
                         {"failed", stats.failed()},
                         {"seconds", stats.seconds()},
                         {"prompt_tokens", stats.prompt_tokens()},
                         {"output_tokens", stats.output_tokens()},
                         {"prompt_tokens_per_second", PerSecond(stats.prompt_tokens(), stats.seconds())},
                         {"output_tokens_per_second", PerSecond(stats.output_tokens(), stats.seconds())},
                         {"time_to_first_token_seconds", LatencyJson(stats.first_token())},
                         {"inter_token_seconds", LatencyJson(stats.inter_token())},
                         {"errors", nlohmann::json::object()}};
  for (const auto& [code, errors] : stats.errors()) {
    json["errors"][code] = {{"count", errors.count}, {"message", errors.message}};
  }
  return json;
}

nlohmann::json GroupJson(const GroupResult& group) {
  nlohmann::json json = {{"name", group.settings.name()},
                         {"background", group.settings.background()},
                         {"quiet", group.quiet ? StatsJson(*group.quiet) : nlohmann::json()},
                         {"together", StatsJson(group.together)},
                         {"times_quiet", nlohmann::json()}};
  if (!group.quiet) return json;
  for (const MeasureSource& source : kMeasures) {
    json["times_quiet"][absl::AsciiStrToLower(scenario::Measure_Name(source.measure))] =
        OrNull(TimesQuiet(source, group));
  }
  return json;
}

nlohmann::json AimJson(const AimResult& result) {
  return {{"group", result.aim.group()},
          {"measure", absl::AsciiStrToLower(scenario::Measure_Name(result.aim.measure()))},
          {"seconds", OrNull(result.seconds)},
          {"limit_seconds", OrNull(result.limit_seconds)},
          {"at_most_times_quiet",
           result.aim.has_at_most_times_quiet() ? nlohmann::json(result.aim.at_most_times_quiet()) : nlohmann::json()},
          {"met", result.met}};
}

// What all groups did in the run together.
struct Totals {
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

Totals TotalsOf(const ScenarioResult& result) {
  Totals totals;
  for (const GroupResult& group : result.groups) {
    totals.prompt_tokens += group.together.prompt_tokens();
    totals.output_tokens += group.together.output_tokens();
  }
  return totals;
}

}  // namespace

void MemoryUse::Add(const v1::GetClusterInfoResponse& cluster) {
  uint64_t reserved = 0, sequences = 0, used = 0;
  cache_tokens_max_ = sequences_max_ = memory_bytes_ = reserved_bytes_ = 0;
  for (const v1::GroupInfo& group : cluster.groups()) {
    reserved += group.cache_tokens_reserved();
    sequences += group.sequences();
    cache_tokens_max_ += group.cache_tokens_max();
    sequences_max_ += group.sequences_max();
    for (const v1::StageInfo& stage : group.stages()) {
      used += stage.weight_bytes();
      memory_bytes_ += stage.memory_bytes();
      reserved_bytes_ += stage.reserved_bytes();
    }
  }
  used += cluster.cache_bytes() + cluster.state_bytes() + cluster.gold_kept_bytes();
  const double idle = IdleShare(reserved, cache_tokens_max_);
  ++looks_;
  memory_idle_sum_ += IdleShare(used, memory_bytes_);
  idle_sum_ += idle;
  idle_least_ = std::min(idle_least_, idle);
  if (cluster.requests_waiting() > 0) {
    ++waiting_looks_;
    idle_waiting_sum_ += idle;
  }
  sequences_ = std::max(sequences_, sequences);
  requests_waiting_ = std::max<uint64_t>(requests_waiting_, cluster.requests_waiting());
  cache_bytes_ = std::max(cache_bytes_, cluster.cache_bytes());
  state_bytes_ = std::max(state_bytes_, cluster.state_bytes());
  gold_kept_bytes_ = std::max(gold_kept_bytes_, cluster.gold_kept_bytes());
}

std::string MemoryUse::Line() const {
  const auto count = [](uint64_t number) { return WithCommas(static_cast<int64_t>(number)); };
  std::string line =
      absl::StrFormat("of %s cache tokens, %s idle at the mean of %s looks, %s at least", count(cache_tokens_max_),
                      Percent(idle_sum_ / static_cast<double>(looks_)), WithCommas(looks_), Percent(idle_least_));
  if (waiting_looks_ > 0) {
    absl::StrAppendFormat(&line, ", %s while requests waited",
                          Percent(idle_waiting_sum_ / static_cast<double>(waiting_looks_)));
  }
  absl::StrAppendFormat(
      &line, "; of %s of memory, %s idle at the mean; at most %s of %s slots used and %s requests waiting",
      HumanBytes(static_cast<int64_t>(memory_bytes_)), Percent(memory_idle_sum_ / static_cast<double>(looks_)),
      count(sequences_), count(sequences_max_), count(requests_waiting_));
  return line;
}

nlohmann::json MemoryUse::Json() const {
  const auto mean = [](double sum, int64_t count) {
    return count > 0 ? nlohmann::json(sum / static_cast<double>(count)) : nlohmann::json();
  };
  return {{"looks", looks_},
          {"cache_tokens_max", cache_tokens_max_},
          {"cache_idle_share_mean", mean(idle_sum_, looks_)},
          {"cache_idle_share_mean_while_waiting", mean(idle_waiting_sum_, waiting_looks_)},
          {"cache_idle_share_least", idle_least_},
          {"sequences_most", sequences_},
          {"sequences_max", sequences_max_},
          {"requests_waiting_most", requests_waiting_},
          {"memory_idle_share_mean", mean(memory_idle_sum_, looks_)},
          {"memory_bytes", memory_bytes_},
          {"reserved_bytes", reserved_bytes_},
          {"cache_bytes_most", cache_bytes_},
          {"state_bytes_most", state_bytes_},
          {"gold_kept_bytes_most", gold_kept_bytes_}};
}

int64_t ScenarioResult::finished() const {
  int64_t count = 0;
  for (const GroupResult& group : groups) {
    count += group.together.finished() + (group.quiet ? group.quiet->finished() : 0);
  }
  return count;
}

int64_t ScenarioResult::failed() const {
  int64_t count = 0;
  for (const GroupResult& group : groups) {
    count += group.together.failed() + (group.quiet ? group.quiet->failed() : 0);
  }
  return count;
}

absl::Status ScenarioResult::first_error() const {
  absl::Status status;
  for (const GroupResult& group : groups) {
    if (group.quiet) status.Update(group.quiet->first_error());
    status.Update(group.together.first_error());
  }
  return status;
}

std::string AimResult::Line() const {
  const std::string times =
      aim.has_at_most_times_quiet() ? absl::StrFormat(" (%g times quiet)", aim.at_most_times_quiet()) : "";
  return absl::StrFormat("%-7s %s: %s is %s, at most %s%s", met ? "met" : "MISSED", aim.group(),
                         SourceOf(aim.measure()).name, Seconds(seconds), Seconds(limit_seconds), times);
}

std::vector<AimResult> CheckAims(const ScenarioResult& result) {
  std::vector<AimResult> results;
  for (const Aim& aim : result.scenario.aims()) {
    AimResult& checked = results.emplace_back();
    checked.aim = aim;
    const MeasureSource& source = SourceOf(aim.measure());
    for (const GroupResult& group : result.groups) {
      if (group.settings.name() != aim.group()) continue;
      checked.seconds = Measured(source, group.together);
      if (aim.has_at_most_ms()) {
        checked.limit_seconds = aim.at_most_ms() * 1e-3;
      } else if (group.quiet) {
        checked.limit_seconds = Measured(source, *group.quiet);
        if (checked.limit_seconds) *checked.limit_seconds *= aim.at_most_times_quiet();
      }
    }
    checked.met = checked.seconds && checked.limit_seconds && *checked.seconds <= *checked.limit_seconds;
  }
  return results;
}

std::string ScenarioTable(const ScenarioResult& result) {
  std::string table =
      absl::StrFormat("scenario %s%s with seed %d; %.2f s of quiet runs, %.2f s together\n", result.scenario.name(),
                      result.variant.empty() ? "" : absl::StrCat(", variant ", result.variant), result.seed,
                      result.quiet_seconds, result.together_seconds);
  if (result.held > 0) {
    absl::StrAppendFormat(&table, "held     %s waited because --max-concurrency is %s\n", WithCommas(result.held),
                          WithCommas(result.max_concurrency));
  }
  absl::StrAppendFormat(&table, "%-28s %9s %7s %19s %19s %19s\n", "", "requests", "failed", "time to first token",
                        "inter-token", "tokens/s");
  absl::StrAppendFormat(&table, "%-28s %9s %7s %9s %9s %9s %9s %9s %9s\n", "", "", "", "p50", "p99", "p50", "p99", "in",
                        "out");
  for (const GroupResult& group : result.groups) AppendGroup(group, &table);
  const Totals totals = TotalsOf(result);
  absl::StrAppendFormat(&table, "%-28s %9s %7s %9s %9s %9s %9s %9.4g %9.4g\n", "all             together", "", "", "",
                        "", "", "", PerSecond(totals.prompt_tokens, result.together_seconds),
                        PerSecond(totals.output_tokens, result.together_seconds));
  const std::string reason(result.memory_status.message());
  absl::StrAppend(&table, "memory  ", result.memory.looks() > 0 ? result.memory.Line() : "unknown: " + SafeText(reason),
                  "\n");
  for (const AimResult& aim : CheckAims(result)) absl::StrAppend(&table, "aim     ", aim.Line(), "\n");
  absl::StrAppendFormat(&table, "errors  %s\n", WithCommas(result.failed()));
  for (const GroupResult& group : result.groups) {
    if (group.quiet) AppendErrors(group.settings.name() + ", quiet", *group.quiet, &table);
    AppendErrors(group.settings.name(), group.together, &table);
  }
  return table;
}

nlohmann::json ScenarioJson(const ScenarioResult& result) {
  const Totals totals = TotalsOf(result);
  nlohmann::json json = {{"scenario", result.scenario.name()},
                         {"variant", result.variant},
                         {"seed", result.seed},
                         {"model",
                          {{"name", result.model.name()},
                           {"fingerprint", result.model.fingerprint()},
                           {"server_version", result.model.server_version()},
                           {"layers", result.model.layers()},
                           {"width", result.model.width()},
                           {"stages", result.stages}}},
                         {"quiet_seconds", result.quiet_seconds},
                         {"seconds", result.together_seconds},
                         {"requests", result.finished()},
                         {"failed", result.failed()},
                         {"held", result.held},
                         {"prompt_tokens_per_second", PerSecond(totals.prompt_tokens, result.together_seconds)},
                         {"output_tokens_per_second", PerSecond(totals.output_tokens, result.together_seconds)},
                         {"groups", nlohmann::json::array()},
                         {"memory", result.memory.looks() > 0 ? result.memory.Json() : nlohmann::json()},
                         {"aims", nlohmann::json::array()}};
  for (const GroupResult& group : result.groups) json["groups"].push_back(GroupJson(group));
  for (const AimResult& aim : CheckAims(result)) json["aims"].push_back(AimJson(aim));
  return json;
}

}  // namespace goldfinch
