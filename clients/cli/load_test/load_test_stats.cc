#include "clients/cli/load_test/load_test_stats.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/safe_text.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

constexpr double kStep = 1.01;
constexpr double kLeastSeconds = 1e-6;
constexpr double kMostSeconds = 1e4;

// Bucket i holds latencies above BucketSeconds(i - 1) and up to BucketSeconds(i).
size_t BucketOf(double seconds) {
  const double clamped = std::clamp(seconds, kLeastSeconds, kMostSeconds);
  return static_cast<size_t>(std::ceil(std::log(clamped / kLeastSeconds) / std::log(kStep)));
}

double BucketSeconds(size_t bucket) { return kLeastSeconds * std::pow(kStep, static_cast<double>(bucket)); }

constexpr std::pair<const char*, double> kQuantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};

void AppendLatencies(const char* name, const LatencyHistogram& latencies, std::string* table) {
  absl::StrAppendFormat(table, "%-20s", name);
  for (const auto& [label, share] : kQuantiles) {
    absl::StrAppendFormat(table, " %10s", latencies.count() > 0 ? HumanSeconds(latencies.Quantile(share)) : "-");
  }
  absl::StrAppendFormat(table, " %10s\n", latencies.count() > 0 ? HumanSeconds(latencies.max()) : "-");
}

}  // namespace

std::string HumanSeconds(double seconds) {
  if (seconds >= 100) return absl::StrFormat("%.0f s", seconds);
  if (seconds >= 1) return absl::StrFormat("%.2f s", seconds);
  if (seconds >= 1e-3) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g us", seconds * 1e6);
}

nlohmann::json LatencyJson(const LatencyHistogram& latencies) {
  nlohmann::json json = {{"count", latencies.count()}, {"max", latencies.max()}};
  for (const auto& [label, share] : kQuantiles) json[label] = latencies.Quantile(share);
  return json;
}

LatencyHistogram::LatencyHistogram() : counts_(BucketOf(kMostSeconds) + 1) {}

void LatencyHistogram::Add(double seconds, int64_t count) {
  counts_[BucketOf(seconds)] += count;
  count_ += count;
  max_ = std::max(max_, seconds);
}

double LatencyHistogram::Quantile(double share) const {
  GF_CHECK(share >= 0 && share <= 1) << "share " << share;
  const auto wanted = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(share * static_cast<double>(count_))));
  int64_t seen = 0;
  for (size_t bucket = 0; bucket < counts_.size(); ++bucket) {
    seen += counts_[bucket];
    if (seen >= wanted) return std::min(BucketSeconds(bucket), max_);
  }
  return 0;
}

std::string CsvHeader() {
  return "request,scheduled_seconds,sent_seconds,first_token_seconds,done_seconds,prompt_tokens,output_tokens,code";
}

std::string CsvRow(const RequestRecord& record) {
  const std::string first =
      record.first_token_seconds ? absl::StrFormat("%.6f", *record.first_token_seconds) : std::string();
  return absl::StrFormat("%d,%.6f,%.6f,%s,%.6f,%d,%d,%s", record.number, record.scheduled_seconds, record.sent_seconds,
                         first, record.done_seconds, record.prompt_tokens, record.output_tokens,
                         absl::StatusCodeToString(record.status.code()));
}

void LoadTestStats::Add(const RequestRecord& record) {
  begin_seconds_ = finished() == 0 ? record.scheduled_seconds : std::min(begin_seconds_, record.scheduled_seconds);
  seconds_ = std::max(seconds_, record.done_seconds);
  lag_seconds_max_ = std::max(lag_seconds_max_, record.sent_seconds - record.scheduled_seconds);
  output_tokens_ += record.output_tokens;
  if (record.first_token_seconds) first_token_.Add(*record.first_token_seconds - record.scheduled_seconds);
  if (record.cut) {
    ++cut_;
    if (record.first_token_seconds) prompt_tokens_ += record.prompt_tokens;
    return;
  }
  if (record.status.ok()) {
    ++completed_;
    prompt_tokens_ += record.prompt_tokens;
    end_to_end_.Add(record.done_seconds - record.scheduled_seconds);
    return;
  }
  ++failed_;
  first_error_.Update(record.status);
  Errors& errors = errors_[absl::StatusCodeToString(record.status.code())];
  if (errors.count++ == 0) errors.message = std::string(record.status.message());
}

void LoadTestStats::AddGap(double seconds, int64_t tokens) {
  inter_token_.Add(seconds / static_cast<double>(tokens), tokens);
}

std::string LoadTestStats::Table(double rate, int64_t max_concurrency) const {
  std::string table =
      absl::StrFormat("requests  %s in %.2f s, %.4g/s; asked for %.4g/s; sent at most %s late\n",
                      WithCommas(finished()), seconds_, PerSecond(finished()), rate, HumanSeconds(lag_seconds_max_));
  if (held_ > 0) {
    absl::StrAppendFormat(&table, "held      %s waited because --max-concurrency is %s: the rate was not kept up\n",
                          WithCommas(held_), WithCommas(max_concurrency));
  }
  absl::StrAppendFormat(&table, "tokens    prompt %s, %.4g/s; output %s, %.4g/s\n", WithCommas(prompt_tokens_),
                        PerSecond(prompt_tokens_), WithCommas(output_tokens_), PerSecond(output_tokens_));
  absl::StrAppendFormat(&table, "%-20s %10s %10s %10s %10s\n", "", "p50", "p90", "p99", "max");
  AppendLatencies("time to first token", first_token_, &table);
  AppendLatencies("inter-token", inter_token_, &table);
  AppendLatencies("end to end", end_to_end_, &table);
  absl::StrAppendFormat(&table, "errors    %s\n", WithCommas(failed_));
  for (const auto& [code, errors] : errors_) {
    absl::StrAppendFormat(&table, "  %s %s, the first: %s\n", WithCommas(errors.count), code, SafeText(errors.message));
  }
  return table;
}

nlohmann::json LoadTestStats::Json(double rate) const {
  nlohmann::json json = {{"requests", finished()},
                         {"completed", completed_},
                         {"failed", failed_},
                         {"held", held_},
                         {"seconds", seconds_},
                         {"requests_per_second_asked", rate},
                         {"requests_per_second", PerSecond(finished())},
                         {"send_lag_seconds_max", lag_seconds_max_},
                         {"prompt_tokens", prompt_tokens_},
                         {"output_tokens", output_tokens_},
                         {"prompt_tokens_per_second", PerSecond(prompt_tokens_)},
                         {"output_tokens_per_second", PerSecond(output_tokens_)},
                         {"time_to_first_token_seconds", LatencyJson(first_token_)},
                         {"inter_token_seconds", LatencyJson(inter_token_)},
                         {"end_to_end_seconds", LatencyJson(end_to_end_)},
                         {"errors", nlohmann::json::object()}};
  for (const auto& [code, errors] : errors_) {
    json["errors"][code] = {{"count", errors.count}, {"message", errors.message}};
  }
  return json;
}

}  // namespace goldfinch
