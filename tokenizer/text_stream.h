// Turns the bytes of tokens into text that can be sent while it is generated: whole UTF-8 characters, up to a stop
// string.
#ifndef GOLDFINCH_TOKENIZER_TEXT_STREAM_H_
#define GOLDFINCH_TOKENIZER_TEXT_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tokenizer/utf8.h"

namespace goldfinch {

// The stop strings of a request, as an automaton that any number of streams share. Immutable. It takes at most 20 bytes
// of memory for each byte of the strings, and 24 while it is made.
class StopStrings {
 public:
  // INVALID_ARGUMENT if a string is empty or not valid UTF-8, or if all together have kBytesMax bytes or more.
  static absl::StatusOr<std::shared_ptr<const StopStrings>> Create(absl::Span<const std::string> strings);
  static constexpr size_t kBytesMax = size_t{1} << 24;

  // The memory that it takes.
  int64_t bytes() const;

 private:
  friend class TextStream;

  // The Aho-Corasick automaton of the strings. A state stands for the longest suffix of the text that is a prefix of
  // one of them. Children are a list, as a table of all bytes would take 1,024 bytes for each state.
  struct State {
    uint32_t byte : 8 = 0;     // The last byte of that suffix.
    uint32_t size : 24 = 0;    // The number of bytes of that suffix.
    uint32_t fail = 0;         // The state of the next shorter suffix that is a prefix of a stop string.
    uint32_t first_child = 0;  // 0: none, for the root is nobody's child.
    uint32_t next_sibling = 0;
    uint32_t stop = 0;  // One more than the index of the longest stop string that is a suffix of that suffix; 0: none.
  };
  static_assert(sizeof(State) == 20);

  explicit StopStrings(absl::Span<const std::string> strings);
  static const std::shared_ptr<const StopStrings>& None();
  // The child of `state` over `byte`, or 0.
  uint32_t Child(uint32_t state, char byte) const;
  // The state after `state` and `byte`.
  uint32_t Next(uint32_t state, char byte) const;

  std::vector<State> states_;    // [0] is the root, the empty suffix.
  std::vector<uint32_t> sizes_;  // The number of bytes of each string.
};

// One stream of text. Its output is valid UTF-8 at every moment and does not depend on how the bytes were cut into
// calls. A broken character becomes U+FFFD (one for each maximal subpart) as soon as it is known to be broken. Stop
// strings are found in the decoded text, however tokens cut them: the one that is complete first ends the stream, or
// the longest one if several are complete at the same byte. The stream holds back only an incomplete character and the
// longest suffix of the text that is a prefix of a stop string. It takes time linear in the bytes of the text and of
// the stop strings. A copy of a stream shares its stop strings. Not thread-safe.
class TextStream {
 public:
  // A stream with stop strings of its own; errors as StopStrings::Create has them.
  static absl::StatusOr<TextStream> Create(absl::Span<const std::string> stop_strings);
  explicit TextStream(std::shared_ptr<const StopStrings> stops) : stops_(std::move(stops)) {}
  // A stream without stop strings.
  TextStream() : TextStream(StopStrings::None()) {}

  // Takes the next bytes and appends to `text` what can be sent now. Bytes after a stop string are dropped.
  void Append(std::string_view bytes, std::string* text);
  // Appends what was held back; an incomplete character becomes U+FFFD. Call it once, at the end.
  void Finish(std::string* text);

  // The index of the stop string that ended the text. The output ends where that string began.
  std::optional<size_t> stop() const { return stop_; }

 private:
  // Adds whole characters to `pending_`. If that completes a stop string, cuts it off and drops the rest.
  void AddText(std::string_view text);
  // Appends `pending_` to `text`, without what was sent before and without the last `held` bytes.
  void Emit(size_t held, std::string* text);

  std::shared_ptr<const StopStrings> stops_;  // Never null.
  uint32_t state_ = 0;
  Utf8Scanner scanner_;
  std::string character_;  // The bytes of an incomplete character.
  std::string pending_;    // Decoded text; its first `sent_` bytes were emitted, the rest is held back.
  size_t sent_ = 0;
  std::optional<size_t> stop_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_TEXT_STREAM_H_
