// A compressed trie of texts by their token ids: texts with the same beginning share its ids.
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
  // Stands for the text of the ids from the root to here. A node other than the root has a segment or at least two
  // children. Its address does not change.
  struct Node {
    Node* parent = nullptr;
    int64_t end = 0;             // length of the text
    PackedIds ids;               // the ids of the text that the parent's text does not have
    int32_t children = 0;        // texts that go on in different ways
    uintptr_t child = 0;         // the addresses of all children, xored: the only child if there is one
    Segment* segment = nullptr;  // that ends here
  };
  // Where a walk along ids ends.
  struct Place {
    Node* node = nullptr;    // the last one whose whole text the ids begin with
    Node* beyond = nullptr;  // the child of it whose ids they go on with for a while, or null
    int64_t matched = 0;     // how many of the ids, from the root on, are those of some text in the tree
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

  // Returns the node of the text that was walked, and makes it if there is none; the caller then sets its segment.
  // `place` is what Walk has returned for these ids, and the tree must not have changed since.
  Node* Insert(const Place& place, absl::Span<const int32_t> ids_beyond);
  // Removes the nodes that are of no use any more after the node's segment has been taken away.
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
