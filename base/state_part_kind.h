// The kinds of parts in which the state of a sequence is kept: one list for stages and shelves, for messages and files,
// and for those who check them. worker/model/state_parts.h says which layer keeps which.
#ifndef GOLDFINCH_BASE_STATE_PART_KIND_H_
#define GOLDFINCH_BASE_STATE_PART_KIND_H_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

namespace goldfinch {

enum class StatePartKind : uint8_t {
  kTimeShift,     // the last input row of the time mix
  kChannelShift,  // the last input row of the channel mix
  kWkv,           // the recurrent state
  kTailRows,      // the newest Finch-side output rows; row p mod 2G is that of position p
  kLogits,        // those that follow the last token: part of a snapshot, but a stage keeps none
  kKeys,          // of ordinary attention
  kValues,        // of ordinary attention
  kIds,           // the compressed cache: token ids,
  kRows,          // and compressed rows c
};

struct StatePartFacts {
  StatePartKind kind;
  const char* name;  // in messages and in files: a name never changes
  bool per_token;    // there is one for each token of a sequence; else one for the sequence, whatever its length
};

// In the order of StatePartKind. The parts of a layer are always kept in this order.
inline constexpr StatePartFacts kStatePartKinds[] = {
    {StatePartKind::kTimeShift, "time_shift", false},
    {StatePartKind::kChannelShift, "channel_shift", false},
    {StatePartKind::kWkv, "wkv", false},
    {StatePartKind::kTailRows, "tail_rows", false},
    {StatePartKind::kLogits, "logits", false},
    {StatePartKind::kKeys, "keys", true},
    {StatePartKind::kValues, "values", true},
    {StatePartKind::kIds, "ids", true},
    {StatePartKind::kRows, "rows", true},
};

constexpr bool StatePartKindsAreInOrder() {
  for (size_t i = 0; i < std::size(kStatePartKinds); ++i) {
    if (static_cast<size_t>(kStatePartKinds[i].kind) != i) return false;
  }
  return true;
}
static_assert(StatePartKindsAreInOrder());

// What a part of a segment counts on a shelf, beside its own bytes.
inline constexpr int64_t kPartOverheadBytes = 512;

constexpr const char* KindName(StatePartKind kind) { return kStatePartKinds[static_cast<size_t>(kind)].name; }
constexpr bool IsPerToken(StatePartKind kind) { return kStatePartKinds[static_cast<size_t>(kind)].per_token; }
// Nothing if no kind has this name.
constexpr std::optional<StatePartKind> ParseKindName(std::string_view name) {
  for (const StatePartFacts& facts : kStatePartKinds) {
    if (facts.name == name) return facts.kind;
  }
  return std::nullopt;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_STATE_PART_KIND_H_
