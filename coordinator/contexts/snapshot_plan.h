// Where snapshots of a prompt are taken. Pure.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SNAPSHOT_PLAN_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SNAPSHOT_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace goldfinch {

struct SnapshotOptions {
  // Long texts have a snapshot at this position, be it in a prompt or in an answer; each further one is half as far
  // into the text again, but at least as many tokens on. So a text of 1M tokens has 13 of them, and a prompt that parts
  // from it anywhere reads at most a third of what it shares again. 0: none. With the default, a snapshot of 9 MB comes
  // once in 30 ms of reading on a fast device, and later more rarely.
  int64_t first_tokens = 8192;
  // What taking a snapshot costs, in tokens of a prompt that could be read instead: a chunk that ends early, and its
  // copy beside the next Steps. Where it would save fewer tokens, none is taken, but for those of breakpoints and ends.
  int64_t cost_tokens = 160;
  // Message borders and growing distances cost at most this part of reading the prompt.
  double cost_share_max = 0.02;
  // Most breakpoints, and most message borders, of one prompt. Of too many, those are taken that are the last ones in
  // equal parts of the prompt.
  int breakpoints_max = 16;
  int borders_max = 16;
};

// What is known of a prompt. Positions may be in any order, repeat, and lie anywhere: those out of (begin, end) do not
// count.
struct SnapshotWishes {
  int64_t begin = 0;                           // what is restored, or 0
  int64_t end = 0;                             // tokens of the prompt
  absl::Span<const int64_t> breakpoints = {};  // that the request names
  absl::Span<const int64_t> borders = {};      // of messages
  absl::Span<const int64_t> partings = {};     // where other texts part from this one, Match::partings
};

// The positions at which the scheduler must end a chunk and save, in their order, the last of them `end`; empty if
// there is nothing to read. Linear in the wishes but for sorting what is left of them.
//   - The end and the breakpoints always count.
//   - A parting counts if it is cost_tokens beyond what is restored and the snapshot before it: the next text of this
//     kind will part there, too.
//   - Growing distances, and then message borders, the last ones first, count if they are as far from other snapshots
//     on both sides, while all of these cost no more than cost_share_max.
std::vector<int64_t> PlanSnapshots(const SnapshotOptions& options, const SnapshotWishes& wishes);

// Adds to `positions` those of growing distances in an answer that goes on from `begin` to `end_max` at most, as far as
// they are cost_tokens beyond `begin`. It costs little beside the time that an answer takes.
void PlanAnswer(const SnapshotOptions& options, int64_t begin, int64_t end_max, std::vector<int64_t>* positions);

// The first position after `position` that is one of growing distances. INT64_MAX: none.
int64_t NextGrowing(const SnapshotOptions& options, int64_t position);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SNAPSHOT_PLAN_H_
