#include "tokenizer/text_stream.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace goldfinch {
namespace {

constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

absl::StatusOr<std::shared_ptr<const StopStrings>> StopStrings::Create(absl::Span<const std::string> strings) {
  size_t bytes = 0;
  for (size_t i = 0; i < strings.size(); ++i) {
    if (strings[i].empty()) return absl::InvalidArgumentError(absl::StrCat("stop string ", i, " is empty"));
    if (!IsValidUtf8(strings[i])) {
      return absl::InvalidArgumentError(absl::StrCat("stop string ", i, " is not valid UTF-8"));
    }
    bytes += strings[i].size();
  }
  if (bytes >= kBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop strings have ", bytes, " bytes together, the limit is ", kBytesMax - 1));
  }
  return std::shared_ptr<const StopStrings>(new StopStrings(strings));
}

StopStrings::StopStrings(absl::Span<const std::string> strings) {
  size_t states = 1;
  for (const std::string& string : strings) states += string.size();
  states_.reserve(states);
  states_.emplace_back();
  sizes_.reserve(strings.size());
  for (const std::string& string : strings) {
    sizes_.push_back(static_cast<uint32_t>(string.size()));
    uint32_t state = 0;
    for (const char byte : string) {
      uint32_t child = Child(state, byte);
      if (child == 0) {
        child = static_cast<uint32_t>(states_.size());
        State& made = states_.emplace_back();
        made.byte = static_cast<uint8_t>(byte);
        made.size = states_[state].size + 1;
        made.next_sibling = states_[state].first_child;
        states_[state].first_child = child;
      }
      state = child;
    }
    // If strings are equal, the first one counts.
    if (states_[state].stop == 0) states_[state].stop = static_cast<uint32_t>(sizes_.size());
  }
  states_.shrink_to_fit();  // strings with a common beginning share states

  // Breadth first, because the `fail` of a state is shorter than the state.
  std::vector<uint32_t> order = {0};
  order.reserve(states_.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t parent = order[i];
    for (uint32_t child = states_[parent].first_child; child != 0; child = states_[child].next_sibling) {
      order.push_back(child);
      State& state = states_[child];
      if (parent != 0) state.fail = Next(states_[parent].fail, static_cast<char>(state.byte));
      if (state.stop == 0) state.stop = states_[state.fail].stop;
    }
  }
}

const std::shared_ptr<const StopStrings>& StopStrings::None() {
  static const std::shared_ptr<const StopStrings> none(new StopStrings({}));
  return none;
}

int64_t StopStrings::bytes() const {
  return static_cast<int64_t>(sizeof(*this) + states_.capacity() * sizeof(State) +
                              sizes_.capacity() * sizeof(uint32_t));
}

uint32_t StopStrings::Child(uint32_t state, char byte) const {
  uint32_t child = states_[state].first_child;
  while (child != 0 && states_[child].byte != static_cast<uint8_t>(byte)) child = states_[child].next_sibling;
  return child;
}

uint32_t StopStrings::Next(uint32_t state, char byte) const {
  for (;;) {
    const uint32_t child = Child(state, byte);
    if (child != 0 || state == 0) return child;
    state = states_[state].fail;
  }
}

absl::StatusOr<TextStream> TextStream::Create(absl::Span<const std::string> stop_strings) {
  GF_ASSIGN_OR_RETURN(std::shared_ptr<const StopStrings> stops, StopStrings::Create(stop_strings));
  return TextStream(std::move(stops));
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
  Emit(stops_->states_[state_].size, text);
}

void TextStream::Finish(std::string* text) {
  if (!character_.empty()) AddText(kReplacementCharacter);
  character_.clear();
  scanner_ = {};
  state_ = 0;
  Emit(0, text);
}

void TextStream::AddText(std::string_view text) {
  for (const char byte : text) {
    if (stop_) return;
    pending_.push_back(byte);
    state_ = stops_->Next(state_, byte);
    if (const uint32_t stop = stops_->states_[state_].stop; stop != 0) {
      stop_ = stop - 1;
      pending_.resize(pending_.size() - stops_->sizes_[*stop_]);
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
