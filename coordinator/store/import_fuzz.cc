// Any bytes as a file that is imported: whatever is in it, the store has all of a context afterwards, or nothing.
//
// The first byte says where the file comes from: from the input as it is, or from a good file that the input changes at
// some places. With its highest bit, the checksums in the header are put right, so that what is behind them is reached.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "coordinator/store/context_transfer.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/memory_files.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/store.h"

namespace goldfinch {
namespace {

constexpr int64_t kStoreBytes = 1 << 20;
constexpr int64_t kTokensMax = 1000;

ContextModel FuzzModel() {
  using Kind = StatePartKind;
  return {{"fingerprint", "bytes", "int8", "cpu-f32"},
          257,
          {{0, Kind::kTimeShift, ElementType::kF32, {2}},
           {0, Kind::kWkv, ElementType::kF32, {1, 2, 2}},
           {1, Kind::kRows, ElementType::kI8, {4}}}};
}

const std::string& GoodFile() {
  static const std::string* const file = [] {
    SegmentSpec segment;
    segment.model = FuzzModel();
    segment.end = segment.gold_position = 5;
    segment.has_snapshot = true;
    const auto layout = LayOut(segment);
    GF_CHECK(layout.ok());
    std::vector<std::string> sections;
    for (const SegmentSection& section : layout->sections) sections.emplace_back(section.bytes, '\0');
    const auto made = ExchangeFile(segment, sections);
    GF_CHECK(made.ok());
    return new std::string(*made);
  }();
  return *file;
}

// Writes the checksums of the tensors' bytes, as they are, over those in the header, as far as it can be read.
void MendChecksums(std::string* file) {
  uint64_t size = 0;
  if (file->size() < sizeof(size)) return;
  std::memcpy(&size, file->data(), sizeof(size));
  if (size > file->size() - sizeof(size)) return;
  const auto header = ParseExchangeHeader(std::string_view(*file).substr(sizeof(size), size));
  if (!header.ok()) return;
  for (const ExchangeTensor& tensor : header->tensors) {
    if (tensor.offset + tensor.bytes > static_cast<int64_t>(file->size())) continue;
    const uint32_t checksum = Crc32c(std::string_view(*file).substr(tensor.offset, tensor.bytes));
    const std::string key = absl::StrCat("\"crc32c.", tensor.name, "\":\"");
    const size_t at = file->find(key);
    if (at == std::string::npos || at + key.size() + 8 > sizeof(size) + size) continue;
    std::string bytes;
    for (int byte = 3; byte >= 0; --byte) bytes.push_back(static_cast<char>(checksum >> (8 * byte)));
    file->replace(at + key.size(), 8, absl::BytesToHexString(bytes));
  }
}

void Import(const std::string& file, size_t piece_bytes) {
  MemoryFiles files;
  const auto store = SegmentStore::Open({.folder = "memory", .bytes_max = kStoreBytes, .files = &files});
  GF_CHECK(store.ok());
  absl::StatusOr<SegmentKey> key;
  {
    ContextImportOptions options;
    options.name_space = "alice";
    options.model = FuzzModel();
    options.tokens_max = kTokensMax;
    options.make_room = [](int64_t bytes) {
      GF_CHECK_GT(bytes, 0);
      return bytes <= kStoreBytes ? absl::OkStatus() : absl::ResourceExhaustedError("too large");
    };
    ContextImport import(store->get(), options);
    absl::Status status;
    for (size_t at = 0; status.ok() && at < file.size(); at += piece_bytes) {
      status = import.Append(std::string_view(file).substr(at, piece_bytes));
      GF_CHECK_LE(import.received(), static_cast<int64_t>(file.size()));
    }
    key = status.ok() ? import.Finish() : status;
  }
  if (!key.ok()) {
    GF_CHECK((*store)->Segments().empty());
    GF_CHECK_EQ((*store)->totals().bytes, 0);
    return;
  }
  GF_CHECK_EQ((*store)->Segments().size(), 1U);
  const auto reader = (*store)->Load(*key);
  GF_CHECK(reader.ok() && (*reader)->Verify().ok());
  GF_CHECK((*reader)->segment().model == FuzzModel());
  GF_CHECK_LE((*reader)->segment().end, kTokensMax);
}

}  // namespace
}  // namespace goldfinch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  std::string input(reinterpret_cast<const char*>(data + 2), size - 2), file;
  if ((data[0] & 1) != 0) {
    file = input;
  } else {
    // Two bytes of place, one of change.
    file = goldfinch::GoodFile();
    for (size_t at = 0; at + 3 <= input.size(); at += 3) {
      const size_t place = (static_cast<uint8_t>(input[at]) << 8 | static_cast<uint8_t>(input[at + 1])) % file.size();
      file[place] = static_cast<char>(file[place] ^ input[at + 2]);
    }
  }
  if ((data[0] & 0x80) != 0) goldfinch::MendChecksums(&file);
  goldfinch::Import(file, 1 + 7 * size_t{data[1]});
  return 0;
}
