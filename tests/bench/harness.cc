#include "tests/bench/harness.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"

namespace goldfinch {
namespace {

std::string Number(double value) { return absl::StrFormat("%g", value); }

std::string Text(double value, int decimals) {
  return std::isnan(value) ? "not measured" : absl::StrFormat("%.*f", decimals, value);
}

}  // namespace

Aim::operator bool() const { return std::isfinite(low) || std::isfinite(high); }

std::string Aim::Text() const {
  if (std::isfinite(low) && std::isfinite(high)) return absl::StrCat(Number(low), " to ", Number(high));
  if (std::isfinite(low)) return absl::StrCat(">= ", Number(low));
  if (std::isfinite(high)) return absl::StrCat("<= ", Number(high));
  return "";
}

std::string Aim::Verdict(double value) const {
  if (!*this) return "";
  return Met(value) ? "met" : "MISSED";
}

Figures::Figures(std::vector<std::string> columns) : columns_(std::move(columns)), next_row_(columns_.size()) {}

void Figures::Add(std::string_view row, std::string_view column, double value, int decimals, Aim aim,
                  nlohmann::json details) {
  const size_t c = std::find(columns_.begin(), columns_.end(), column) - columns_.begin();
  GF_CHECK(c < columns_.size()) << std::string(column);
  size_t r = 0;
  while (r < rows_.size() && rows_[r].name != row) ++r;
  if (r == rows_.size()) {
    r = next_row_[c];
    rows_.insert(rows_.begin() + static_cast<std::ptrdiff_t>(r), Row{std::string(row), {}});
    for (size_t& next : next_row_) next += next > r ? 1 : 0;
  }
  auto& figures = rows_[r].figures;
  const auto at = std::find_if(figures.begin(), figures.end(), [&](const auto& figure) { return figure.first >= c; });
  GF_CHECK(at == figures.end() || at->first != c) << std::string(row);
  figures.insert(at, {c, Figure{value, decimals, aim, std::move(details)}});
  next_row_[c] = r + 1;
}

void Figures::NotMeasured(std::string_view row, std::string_view column, std::string_view why) {
  Add(row, column, std::numeric_limits<double>::quiet_NaN(), 0, {}, {{"not_measured", std::string(why)}});
}

std::string Figures::Table() const {
  std::string table = "| quantity |";
  std::string line = "|---|";
  for (const std::string& column : columns_) {
    absl::StrAppend(&table, " ", column, " |");
    line += "---|";
  }
  absl::StrAppend(&table, " aim |\n", line, "---|\n");
  for (const Row& row : rows_) {
    absl::StrAppend(&table, "| ", row.name, " |");
    size_t next = 0;
    std::string aims;
    bool same = true;
    for (const auto& [column, figure] : row.figures) {
      for (; next < column; ++next) table += " |";
      absl::StrAppend(&table, " ", Text(figure.value, figure.decimals), " |");
      next = column + 1;
      const std::string aim = figure.aim.Text();
      same = same && aim == row.figures.front().second.aim.Text();
      if (!aim.empty()) absl::StrAppend(&aims, aims.empty() ? "" : ", ", columns_[column], " ", aim);
    }
    for (; next < columns_.size(); ++next) table += " |";
    if (same) aims = row.figures.front().second.aim.Text();
    absl::StrAppend(&table, aims.empty() ? "" : " ", aims, " |\n");
  }
  return table;
}

nlohmann::json Figures::Json() const {
  nlohmann::json json = nlohmann::json::array();
  for (const Row& row : rows_) {
    for (const auto& [column, figure] : row.figures) {
      nlohmann::json entry = {{"quantity", row.name}, {"column", columns_[column]}};
      if (!std::isnan(figure.value)) entry["value"] = figure.value;
      if (figure.aim) entry.update({{"aim", figure.aim.Text()}, {"verdict", figure.aim.Verdict(figure.value)}});
      entry.update(figure.details);
      json.push_back(std::move(entry));
    }
  }
  return json;
}

std::vector<std::string> Figures::Missed() const {
  std::vector<std::string> missed;
  for (const Row& row : rows_) {
    for (const auto& [column, figure] : row.figures) {
      if (!figure.aim || figure.aim.Met(figure.value)) continue;
      missed.push_back(absl::StrCat(columns_[column], ": ", row.name, ": ", Text(figure.value, figure.decimals),
                                    ", aim ", figure.aim.Text()));
    }
  }
  return missed;
}

absl::Status WriteJson(const std::string& path, const nlohmann::json& json) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << json.dump(2) << "\n";
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
}

double Median(std::vector<double> values) {
  GF_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::string Thousands(int64_t count) {
  if (count % (1 << 20) == 0) return absl::StrCat(count >> 20, "M");
  return count % 1024 == 0 ? absl::StrCat(count >> 10, "k") : absl::StrCat(count);
}

}  // namespace goldfinch
