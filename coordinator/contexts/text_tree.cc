#include "coordinator/contexts/text_tree.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace goldfinch {
namespace {

// What a node takes, and its entry among the children.
constexpr int64_t kNodeBytes = sizeof(TextTree::Node) + 2 * (2 * sizeof(void*) + sizeof(int64_t));

}  // namespace

TextTree::TextTree() = default;

TextTree::~TextTree() {
  for (const auto& [key, node] : children_) delete node;
}

TextTree::Node* TextTree::NewNode(Node* parent, PackedIds ids) {
  Node* const node = new Node;
  node->end = parent->end + static_cast<int64_t>(ids.size());
  node->ids = std::move(ids);
  bytes_ += kNodeBytes + node->ids.bytes();
  Adopt(parent, node);
  return node;
}

void TextTree::Adopt(Node* parent, Node* child) {
  child->parent = parent;
  GF_CHECK(children_.emplace(std::make_pair(parent, child->ids[0]), child).second);
  ++parent->children;
  parent->child ^= reinterpret_cast<uintptr_t>(child);
}

void TextTree::Disown(Node* parent, Node* child) {
  GF_CHECK_EQ(children_.erase({parent, child->ids[0]}), size_t{1});
  --parent->children;
  parent->child ^= reinterpret_cast<uintptr_t>(child);
}

void TextTree::Delete(Node* node) {
  bytes_ -= kNodeBytes + node->ids.bytes();
  delete node;
}

TextTree::Node* TextTree::Insert(const Place& place, absl::Span<const int32_t> ids_beyond) {
  Node* node = place.node;
  if (const int64_t shared = place.matched - node->end; shared > 0) {
    // The text parts from the one beyond within its ids, or ends there: a new node comes between.
    Node* const beyond = place.beyond;
    Disown(node, beyond);
    bytes_ -= beyond->ids.bytes();
    PackedIds front = beyond->ids.TakeFront(static_cast<size_t>(shared));
    bytes_ += beyond->ids.bytes();
    node = NewNode(node, std::move(front));
    Adopt(node, beyond);
    ids_beyond.remove_prefix(static_cast<size_t>(shared));
  }
  return ids_beyond.empty() ? node : NewNode(node, PackedIds(ids_beyond));
}

void TextTree::Tidy(Node* node) {
  if (node == &root_ || node->segment != nullptr) return;
  Node* const parent = node->parent;
  if (node->children == 0) {
    Disown(parent, node);
    Delete(node);
    if (parent != &root_ && parent->segment == nullptr && parent->children == 1) Tidy(parent);  // once: not again above
    return;
  }
  if (node->children > 1) return;
  // The only child takes its place.
  Node* const child = reinterpret_cast<Node*>(node->child);
  Disown(node, child);
  Disown(parent, node);
  bytes_ -= child->ids.bytes();
  PackedIds ids = std::move(node->ids);
  bytes_ -= kNodeBytes + ids.bytes();
  delete node;
  ids.Append(child->ids);
  child->ids = std::move(ids);
  bytes_ += child->ids.bytes();
  Adopt(parent, child);
}

std::vector<int32_t> TextTree::Ids(const Node* node, int64_t begin, int64_t end, size_t more) {
  GF_CHECK(begin >= 0 && begin <= end && end <= node->end);
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(end - begin) + more);
  ids.resize(static_cast<size_t>(end - begin));
  std::vector<int32_t> edge;
  for (; node->end > begin; node = node->parent) {
    const int64_t from = node->parent->end;
    if (from >= end) continue;
    if (from >= begin && node->end <= end) {
      node->ids.CopyTo(ids.data() + (from - begin));
      continue;
    }
    edge.resize(node->ids.size());
    node->ids.CopyTo(edge.data());
    std::copy(edge.begin() + (std::max(begin, from) - from), edge.begin() + (std::min(end, node->end) - from),
              ids.begin() + (std::max(begin, from) - begin));
  }
  return ids;
}

}  // namespace goldfinch
