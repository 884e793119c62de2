#include "tests/bench/figures.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"

namespace goldfinch {
namespace {

std::string Number(double value) { return absl::StrFormat("%g", value); }

std::string AimText(const Aim& aim) {
  const bool low = std::isfinite(aim.low), high = std::isfinite(aim.high);
  if (low && high) return absl::StrCat(Number(aim.low), " to ", Number(aim.high));
  if (low) return absl::StrCat(">= ", Number(aim.low));
  if (high) return absl::StrCat("<= ", Number(aim.high));
  return "";
}

std::string Text(double value, int decimals) {
  return std::isnan(value) ? "not measured" : absl::StrFormat("%.*f", decimals, value);
}

}  // namespace

Figures::Figures(std::vector<std::string> columns) : columns_(std::move(columns)), next_row_(columns_.size()) {}

void Figures::Add(std::string_view row, std::string_view column, double value, int decimals, Aim aim) {
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
  figures.insert(at, {c, Figure{value, decimals, aim}});
  next_row_[c] = r + 1;
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
      const std::string aim = AimText(figure.aim);
      same = same && aim == AimText(row.figures.front().second.aim);
      if (!aim.empty()) absl::StrAppend(&aims, aims.empty() ? "" : ", ", columns_[column], " ", aim);
    }
    for (; next < columns_.size(); ++next) table += " |";
    if (same) aims = AimText(row.figures.front().second.aim);
    absl::StrAppend(&table, aims.empty() ? "" : " ", aims, " |\n");
  }
  return table;
}

nlohmann::json Figures::Json() const {
  nlohmann::json json = nlohmann::json::object();
  for (const Row& row : rows_) {
    for (const auto& [column, figure] : row.figures) json[row.name][columns_[column]] = figure.value;
  }
  return json;
}

std::vector<std::string> Figures::Missed() const {
  std::vector<std::string> missed;
  for (const Row& row : rows_) {
    for (const auto& [column, figure] : row.figures) {
      // What is no number meets nothing.
      if (AimText(figure.aim).empty() || (figure.value >= figure.aim.low && figure.value <= figure.aim.high)) continue;
      missed.push_back(absl::StrCat(columns_[column], ": ", row.name, ": ", Text(figure.value, figure.decimals),
                                    ", aim ", AimText(figure.aim)));
    }
  }
  return missed;
}

}  // namespace goldfinch
