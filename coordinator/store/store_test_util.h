// Segments of a small model, for tests of the store.
#ifndef GOLDFINCH_COORDINATOR_STORE_STORE_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_STORE_STORE_TEST_UTIL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store.h"

namespace goldfinch {

// Two Finch-C2 layers, and GOLD layers that read the compressed rows of layer 1.
ContextModel TestContextModel(ElementType rows = ElementType::kF16);

// A segment with the bytes of its sections, which depend on `seed`; every number is finite.
struct TestSegment {
  SegmentSpec segment;
  std::vector<int32_t> ids;
  std::vector<std::string> sections;  // as in the layout; the first one is of the ids
  SegmentKey key{};
};
TestSegment MakeTestSegment(SegmentSpec segment, int seed);
// [0, tokens) of a text, with snapshot and logits.
TestSegment MakeTestSegment(int64_t tokens, int seed = 1);
// [parent.end, parent.end + tokens).
TestSegment MakeTestChild(const TestSegment& parent, int64_t tokens, int seed);

// Saves it in pieces of that size, the sections in turns.
absl::Status SaveTestSegment(SegmentStore* store, const TestSegment& segment, size_t piece_bytes = 7);
// Everything that the store has of it, in the order of the sections.
absl::StatusOr<std::vector<std::string>> LoadSections(SegmentStore* store, const SegmentKey& key,
                                                      size_t piece_bytes = 1 << 20);

// An empty folder of this test, with whatever an earlier run has left removed.
std::string EmptyTestFolder(const std::string& name);
// Fails with a CHECK if it cannot be opened.
std::unique_ptr<SegmentStore> OpenTestStore(const std::string& folder, int64_t bytes_max = 1 << 30,
                                            Files* files = Files::System());

std::string ReadTestFile(const std::string& path);
void WriteTestFile(const std::string& path, const std::string& bytes);
// The names of what is in a folder, sorted, without the lock and the folder `quarantine`.
std::vector<std::string> NamesIn(const std::string& folder);
// The lengths of the files of segments and names in a folder and in its quarantine.
int64_t BytesIn(const std::string& folder);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_STORE_TEST_UTIL_H_
