// Texts by their token ids: a compressed trie. Texts with the same beginning share the ids of it.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_TEXT_TREE_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_TEXT_TREE_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "coordinator/contexts/packed_ids.h"

namespace goldfinch {

struct Segment;

// Not thread-safe. Every operation takes time linear in the ids that it is given, plus one look-up for each node on
// their way, whatever else the tree holds; none of them recurses.
class TextTree {
 public:
  // The text that the ids from the root to here make. A node other than the root has a segment or at least two
  // children; its address stays the same for as long as it lives.
  struct Node {
    Node* parent = nullptr;
    int64_t end = 0;             // length of the text
    PackedIds ids;               // of the text, those that the parent's does not have
    int32_t children = 0;        // texts that go on in different ways
    uintptr_t child = 0;         // the addresses of all children, xored: the only child if there is one
    Segment* segment = nullptr;  // that ends here
  };
  // Where ids lead.
  struct Place {
    Node* node = nullptr;    // the last one whose text they have in full
    Node* beyond = nullptr;  // of its children the one with whose ids they go on, or null
    int64_t matched = 0;     // length of the text that they have in common with any in the tree
  };

  TextTree();
  ~TextTree();
  TextTree(const TextTree&) = delete;
  TextTree& operator=(const TextTree&) = delete;

  Node* root() { return &root_; }
  bool empty() const { return root_.children == 0; }
  int64_t bytes() const { return bytes_; }

  // Follows ids from a node on, and calls visit(node) for every node whose text they have in full, but not for `from`.
  // It ends early if `visit` returns false.
  template <typename Visit>
  Place Walk(Node* from, absl::Span<const int32_t> ids, const Visit& visit) const {
    Place place{from, nullptr, from->end};
    while (!ids.empty()) {
      const auto found = children_.find({place.node, ids[0]});
      if (found == children_.end()) break;
      Node* const next = found->second;
      const size_t equal = next->ids.CommonPrefix(ids);
      place.matched += static_cast<int64_t>(equal);
      if (equal < next->ids.size()) {
        place.beyond = next;
        break;
      }
      place.node = next;
      ids.remove_prefix(equal);
      if (!visit(next)) break;
    }
    return place;
  }

  // The node of the text of `from` and `ids`, which gets one if it has none; the caller then sets its segment. `place`
  // is what Walk has returned for the same, and whatever was walked must not have changed.
  Node* Insert(const Place& place, absl::Span<const int32_t> ids_beyond);
  // After the node's segment has been taken away: removes what is of no use any more.
  void Tidy(Node* node);

  // The ids of positions [begin, end) of a node's text, with room for `more` behind them.
  static std::vector<int32_t> Ids(const Node* node, int64_t begin, int64_t end, size_t more = 0);

 private:
  Node* NewNode(Node* parent, PackedIds ids);
  void Adopt(Node* parent, Node* child);
  void Disown(Node* parent, Node* child);
  void Delete(Node* node);

  Node root_;
  int64_t bytes_ = 0;
  // By parent and the first id beyond it.
  absl::flat_hash_map<std::pair<const Node*, int32_t>, Node*> children_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_TEXT_TREE_H_
