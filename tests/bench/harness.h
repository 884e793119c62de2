// What every bench shares: what a figure is held against, the figures of a run as a table and as JSON, and small
// helpers to take times.
#ifndef GOLDFINCH_TESTS_BENCH_HARNESS_H_
#define GOLDFINCH_TESTS_BENCH_HARNESS_H_

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace goldfinch {

// A value meets the aim if it lies in [low, high]. NaN, which stands for what was not measured, meets no aim.
struct Aim {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();

  // False if there are no bounds: then there is nothing to meet.
  explicit operator bool() const;
  bool Met(double value) const { return value >= low && value <= high; }
  // ">= 0.85", "0.95 to 1.05", or nothing.
  std::string Text() const;
  // "met" or "MISSED", or nothing without bounds.
  std::string Verdict(double value) const;
};

// The figures of a run: quantities by columns, which are models or devices.
class Figures {
 public:
  explicit Figures(std::vector<std::string> columns);

  // Adds one figure; a row and a column have one at most. Rows keep the order in which they were added; a row that only
  // a later column has follows the row that this column was given before it. `details` go into the JSON.
  void Add(std::string_view row, std::string_view column, double value, int decimals, Aim aim = {},
           nlohmann::json details = nlohmann::json::object());
  // Adds a figure that could not be measured, and why.
  void NotMeasured(std::string_view row, std::string_view column, std::string_view why);

  // Markdown. The last column gives the aims: one text if all figures of a row have the same aim.
  std::string Table() const;
  // [{"quantity": row, "column": column, "value": value, "aim": text, "verdict": text, details...}]
  nlohmann::json Json() const;
  // "int4: ROW: 0.81, aim >= 0.85", in the order of the table.
  std::vector<std::string> Missed() const;

 private:
  struct Figure {
    double value = 0;
    int decimals = 0;
    Aim aim;
    nlohmann::json details;
  };
  struct Row {
    std::string name;
    std::vector<std::pair<size_t, Figure>> figures;  // by column, ascending
  };

  const std::vector<std::string> columns_;
  std::vector<Row> rows_;
  std::vector<size_t> next_row_;  // by column: the place after the last row that it was given
};

// Writes indented JSON to `path`; nothing if that is empty. UNAVAILABLE names the path.
absl::Status WriteJson(const std::string& path, const nlohmann::json& json);

// Seconds of a clock that never goes back.
inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// `values` must not be empty.
double Median(std::vector<double> values);
// "64k", "1M", or the number itself.
std::string Thousands(int64_t count);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_HARNESS_H_
