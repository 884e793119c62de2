#include "tokenizer/text_stream.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace goldfinch {
namespace {

constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

absl::StatusOr<TextStream> TextStream::Create(absl::Span<const std::string> stop_strings) {
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    if (stop_strings[i].empty()) return absl::InvalidArgumentError(absl::StrCat("stop string ", i, " is empty"));
    if (!IsValidUtf8(stop_strings[i])) {
      return absl::InvalidArgumentError(absl::StrCat("stop string ", i, " is not valid UTF-8"));
    }
  }
  return TextStream(stop_strings);
}

TextStream::TextStream(absl::Span<const std::string> stop_strings) : states_(1) {
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    uint32_t state = 0;
    for (const char byte : stop_strings[i]) {
      uint32_t child = Child(state, byte);
      if (child == 0) {
        child = static_cast<uint32_t>(states_.size());
        states_.push_back({.byte = byte, .size = states_[state].size + 1, .next_sibling = states_[state].first_child});
        states_[state].first_child = child;
      }
      state = child;
    }
    if (!states_[state].stop) {  // If stop strings are equal, the first one counts.
      states_[state].stop = static_cast<uint32_t>(i);
      states_[state].stop_size = states_[state].size;
    }
  }

  // Breadth first, because the `fail` of a state is shorter than the state.
  std::vector<uint32_t> order = {0};
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t parent = order[i];
    for (uint32_t child = states_[parent].first_child; child != 0; child = states_[child].next_sibling) {
      order.push_back(child);
      State& state = states_[child];
      if (parent != 0) state.fail = Next(states_[parent].fail, state.byte);
      if (!state.stop) {
        state.stop = states_[state.fail].stop;
        state.stop_size = states_[state.fail].stop_size;
      }
    }
  }
}

void TextStream::Append(std::string_view bytes, std::string* text) {
  using Step = Utf8Scanner::Step;
  for (const char byte : bytes) {
    if (stop_) break;
    Step step = scanner_.Feed(byte);
    if (step == Step::kErrorBeforeByte) {
      character_.clear();
      AddText(kReplacementCharacter);
      step = scanner_.Feed(byte);
    }
    if (step == Step::kError) {
      AddText(kReplacementCharacter);
      continue;
    }
    character_.push_back(byte);
    if (step == Step::kCharacter) {
      AddText(character_);
      character_.clear();
    }
  }
  Emit(states_[state_].size, text);
}

void TextStream::Finish(std::string* text) {
  if (!character_.empty()) AddText(kReplacementCharacter);
  character_.clear();
  scanner_ = {};
  state_ = 0;
  Emit(0, text);
}

uint32_t TextStream::Child(uint32_t state, char byte) const {
  uint32_t child = states_[state].first_child;
  while (child != 0 && states_[child].byte != byte) child = states_[child].next_sibling;
  return child;
}

uint32_t TextStream::Next(uint32_t state, char byte) const {
  for (;;) {
    const uint32_t child = Child(state, byte);
    if (child != 0 || state == 0) return child;
    state = states_[state].fail;
  }
}

void TextStream::AddText(std::string_view text) {
  for (const char byte : text) {
    if (stop_) return;
    pending_.push_back(byte);
    state_ = Next(state_, byte);
    const State& state = states_[state_];
    if (state.stop) {
      stop_ = *state.stop;
      pending_.resize(pending_.size() - state.stop_size);
      state_ = 0;
    }
  }
}

void TextStream::Emit(size_t held, std::string* text) {
  const size_t end = pending_.size() - held;
  text->append(pending_, sent_, end - sent_);
  sent_ = end;
  // Not in every call, because that would move what is held back with every token.
  if (sent_ >= held) {
    pending_.erase(0, sent_);
    sent_ = 0;
  }
}

}  // namespace goldfinch
