// What a bench has measured of several models: a table of quantities by models, with what was aimed at.
#ifndef GOLDFINCH_TESTS_BENCH_FIGURES_H_
#define GOLDFINCH_TESTS_BENCH_FIGURES_H_

#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

namespace goldfinch {

// A value meets it from `low` to `high`; without both there is none.
struct Aim {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};

class Figures {
 public:
  // `columns`: the models, by the names that Add gets.
  explicit Figures(std::vector<std::string> columns);

  // One figure, once a row and column. Rows keep the order in which they came; one that only a later column has stands
  // behind the row that this column got before it. NaN stands for what was not measured, and meets no aim.
  void Add(std::string_view row, std::string_view column, double value, int decimals, Aim aim = {});

  // Markdown. A column of aims is the last: one text if all columns of a row have the same.
  std::string Table() const;
  // {row: {column: value}}
  nlohmann::json Json() const;
  // "int4: ROW: 0.81, aim >= 0.85", in the order of the table.
  std::vector<std::string> Missed() const;

 private:
  struct Figure {
    double value = 0;
    int decimals = 0;
    Aim aim;
  };
  struct Row {
    std::string name;
    std::vector<std::pair<size_t, Figure>> figures;  // by column, ascending
  };

  const std::vector<std::string> columns_;
  std::vector<Row> rows_;
  std::vector<size_t> next_row_;  // by column: behind the last that it got
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_FIGURES_H_
