#include "coordinator/store/store_test_util.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/sha256.h"
#include "base/status.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

namespace fs = std::filesystem;

uint32_t Mix(uint32_t number) {
  number = (number ^ (number >> 16)) * 0x7FEB352D;
  number = (number ^ (number >> 15)) * 0x846CA68B;
  return number ^ (number >> 16);
}

// Bytes that are finite numbers in every type: no byte has all bits of an exponent.
std::string TestBytes(int64_t bytes, uint32_t seed) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < text.size(); ++i)
    text[i] = static_cast<char>(Mix(seed * 77777 + static_cast<uint32_t>(i)) & 0xBB);
  return text;
}

std::string IdBytesOf(const std::vector<int32_t>& ids, ElementType type) {
  std::string bytes;
  for (const int32_t id : ids) bytes.append(reinterpret_cast<const char*>(&id), BytesOf(type));
  return bytes;
}

}  // namespace

ContextModel TestContextModel(ElementType rows) {
  using Kind = StatePartKind;
  const int64_t row = rows == ElementType::kI8 ? 10 : 8;
  return {{"0123456789abcdef", "world-1", Name(rows), "cpu-f32"},
          1000,
          {{0, Kind::kTimeShift, ElementType::kF32, {16}},
           {0, Kind::kChannelShift, ElementType::kF32, {16}},
           {0, Kind::kWkv, ElementType::kF32, {2, 8, 8}},
           {1, Kind::kTimeShift, ElementType::kF32, {16}},
           {1, Kind::kWkv, ElementType::kF32, {2, 8, 8}},
           {1, Kind::kTailRows, ElementType::kF32, {4, 16}},
           {1, Kind::kRows, rows, {row}},
           {2, Kind::kTimeShift, ElementType::kF32, {16}}}};
}

TestSegment MakeTestSegment(SegmentSpec segment, int seed) {
  TestSegment made;
  made.segment = std::move(segment);
  const auto layout = LayOut(made.segment);
  GF_CHECK(layout.ok()) << layout.status();
  for (int64_t i = 0; i < made.segment.tokens(); ++i) {
    made.ids.push_back(
        static_cast<int32_t>(Mix(seed * 1000 + static_cast<uint32_t>(i)) % made.segment.model.vocab_size));
  }
  SegmentKeyHash key(made.segment);
  key.AddIds(made.ids);
  for (size_t i = 0; i < layout->sections.size(); ++i) {
    const SegmentSection& section = layout->sections[i];
    made.sections.push_back(i == 0 ? IdBytesOf(made.ids, section.type)
                                   : TestBytes(section.bytes, static_cast<uint32_t>(seed * 100 + i)));
    if (made.segment.end > 0 || i == 0) continue;
    Sha256 hash;
    hash.Add(made.sections.back());
    key.AddSection(hash.Finish());
  }
  made.key = key.Finish();
  return made;
}

TestSegment MakeTestSegment(int64_t tokens, int seed) {
  SegmentSpec segment;
  segment.model = TestContextModel();
  segment.end = segment.gold_position = tokens;
  segment.has_snapshot = true;
  segment.has_logits = tokens > 0;
  return MakeTestSegment(std::move(segment), seed);
}

TestSegment MakeTestChild(const TestSegment& parent, int64_t tokens, int seed) {
  SegmentSpec segment = parent.segment;
  segment.parent = parent.key;
  segment.begin = parent.segment.end;
  segment.end = segment.gold_position = segment.begin + tokens;
  segment.has_snapshot = segment.has_logits = true;
  return MakeTestSegment(std::move(segment), seed);
}

absl::Status SaveTestSegment(SegmentStore* store, const TestSegment& segment, size_t piece_bytes) {
  GF_ASSIGN_OR_RETURN(const auto writer, store->Save(segment.segment, segment.key));
  for (size_t at = 0; at < segment.ids.size(); at += piece_bytes) {
    GF_RETURN_IF_ERROR(writer->AppendIds(absl::MakeConstSpan(segment.ids).subspan(at, piece_bytes)));
  }
  bool more = true;
  for (size_t at = 0; more; at += piece_bytes) {
    more = false;
    for (size_t i = 1; i < segment.sections.size(); ++i) {
      if (at >= segment.sections[i].size()) continue;
      GF_RETURN_IF_ERROR(writer->Append(static_cast<int>(i), segment.sections[i].substr(at, piece_bytes)));
      more = true;
    }
  }
  return writer->Commit().status();
}

absl::StatusOr<std::vector<std::string>> LoadSections(SegmentStore* store, const SegmentKey& key, size_t piece_bytes) {
  GF_ASSIGN_OR_RETURN(const auto reader, store->Load(key));
  std::vector<std::string> sections;
  for (size_t i = 0; i < reader->layout().sections.size(); ++i) {
    std::string& bytes = sections.emplace_back(reader->layout().sections[i].bytes, '\0');
    for (size_t at = 0; at < bytes.size(); at += piece_bytes) {
      const size_t size = std::min(piece_bytes, bytes.size() - at);
      GF_RETURN_IF_ERROR(reader->Read(static_cast<int>(i), static_cast<int64_t>(at), {bytes.data() + at, size}));
    }
  }
  return sections;
}

std::string EmptyTestFolder(const std::string& name) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/", name);
  fs::remove_all(folder);
  return folder;
}

std::unique_ptr<SegmentStore> OpenTestStore(const std::string& folder, int64_t bytes_max, Files* files) {
  StoreOptions options;
  options.folder = folder;
  options.bytes_max = bytes_max;
  options.files = files;
  auto store = SegmentStore::Open(options);
  GF_CHECK(store.ok()) << store.status();
  return *std::move(store);
}

std::string ReadTestFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  GF_CHECK(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void WriteTestFile(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  out.close();
  GF_CHECK(out.good()) << path;
}

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name != "lock" && name != "quarantine") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

int64_t BytesIn(const std::string& folder) {
  int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename() != "lock") bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

}  // namespace goldfinch
