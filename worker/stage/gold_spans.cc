#include "worker/stage/gold_spans.h"

namespace goldfinch {

GoldSpans::GoldSpans(const StageExtent& stage, int max_sequences)
    : spent_before_(TokenShiftReach(stage.gold_layers_before())), spans_(TokenShiftReach(stage.gold_layers()) + 1) {
  for (std::vector<RowSpan>& spans : spans_) spans.reserve(max_sequences);
  warm_up_.reserve(max_sequences);
}

void GoldSpans::Clear() {
  for (std::vector<RowSpan>& spans : spans_) spans.clear();
  warm_up_.clear();
  warms_up_ = false;
}

void GoldSpans::Add(int slot, const GoldInputRows& rows, const int32_t* pages) {
  if (rows.count() == 0) return;
  const auto row_begin = static_cast<int32_t>(this->rows(0)), count = static_cast<int32_t>(EntryRows(rows));
  spans_[0].push_back({slot, row_begin, count, rows.end - count, pages});
  warm_up_.push_back(rows.warm_up);
  warms_up_ = warms_up_ || rows.warm_up;
}

void GoldSpans::Finish() {
  if (!warms_up_) return;
  for (size_t shift = 1; shift < spans_.size(); ++shift) {
    int32_t row = 0;
    for (size_t i = 0; i < warm_up_.size(); ++i) {
      RowSpan span = spans_[shift - 1][i];
      const int32_t spent = warm_up_[i] ? 1 : 0;
      span.row_begin = row;
      span.row_count -= spent;
      span.position += spent;
      row += span.row_count;
      spans_[shift].push_back(span);
    }
  }
}

int64_t GoldSpans::rows(int shift) const {
  const RowSpans spans = at(shift);
  return spans.empty() ? 0 : spans.back().row_begin + spans.back().row_count;
}

void GoldSpans::SpentRows(int shift, std::vector<RowCopy>* to_slots) const {
  to_slots->clear();
  if (!warms_up_) return;
  for (size_t i = 0; i < warm_up_.size(); ++i) {
    if (warm_up_[i]) to_slots->push_back({spans_[shift][i].row_begin, spans_[shift][i].slot});
  }
}

void GoldSpans::RemainingRows(int shift, std::vector<RowCopy>* moves) const {
  moves->clear();
  if (!warms_up_) return;
  for (size_t i = 0; i < warm_up_.size(); ++i) {
    const RowSpan &before = spans_[shift][i], &after = spans_[shift + 1][i];
    const int32_t spent = before.row_count - after.row_count;
    for (int32_t row = 0; row < after.row_count; ++row) {
      moves->push_back({before.row_begin + spent + row, after.row_begin + row});
    }
  }
}

}  // namespace goldfinch
