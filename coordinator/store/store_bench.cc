// How fast a store saves and loads, beside the disk itself, and how long its start takes with many segments. The files
// are in $STORE_BENCH_FOLDER, or in /tmp.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "benchmark/benchmark.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store.h"

namespace goldfinch {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;

std::string EmptyFolder() {
  const char* const given = std::getenv("STORE_BENCH_FOLDER");
  std::string folder = absl::StrCat(given != nullptr ? given : "/tmp", "/goldfinch_store_bench");
  std::filesystem::remove_all(folder);
  return folder;
}

std::unique_ptr<SegmentStore> OpenStore(const std::string& folder) {
  StoreOptions options;
  options.folder = folder;
  auto store = SegmentStore::Open(options);
  GF_CHECK(store.ok()) << store.status();
  return *std::move(store);
}

// A GoldFinch model of the released size: 24 layers, width 2048.
ContextModel ReleasedModel() {
  using Kind = StatePartKind;
  ContextModel model = {{"f", "v", "bf16", "cuda-bf16"}, 65536, {}};
  for (int layer = 0; layer < 24; ++layer) {
    for (const Kind kind : {Kind::kTimeShift, Kind::kChannelShift}) {
      model.parts.push_back({layer, kind, ElementType::kF32, {2048}});
    }
    if (layer < 16) model.parts.push_back({layer, Kind::kWkv, ElementType::kF32, {32, 64, 64}});
    if (layer == 15) model.parts.push_back({layer, Kind::kTailRows, ElementType::kF32, {16, 2048}});
    if (layer == 15) model.parts.push_back({layer, Kind::kRows, ElementType::kBf16, {128}});
  }
  return model;
}

SegmentSpec SegmentOf(int64_t tokens, int number) {
  SegmentSpec segment;
  segment.model = ReleasedModel();
  segment.name_space = absl::StrCat(number);  // another key for each
  segment.end = tokens;
  segment.has_snapshot = true;
  return segment;
}

SegmentKey Save(SegmentStore* store, const SegmentSpec& segment, const std::string& piece) {
  auto writer = store->Save(segment);
  GF_CHECK(writer.ok()) << writer.status();
  const std::vector<int32_t> ids(1 << 18, 7);
  for (int64_t left = segment.tokens(); left > 0; left -= static_cast<int64_t>(ids.size())) {
    GF_CHECK((*writer)->AppendIds(absl::MakeConstSpan(ids).subspan(0, left)).ok());
  }
  const auto& sections = (*writer)->layout().sections;
  for (size_t i = 1; i < sections.size(); ++i) {
    for (int64_t left = sections[i].bytes; left > 0; left -= kPieceBytes) {
      GF_CHECK((*writer)->Append(static_cast<int>(i), std::string_view(piece).substr(0, left)).ok());
    }
  }
  const auto key = (*writer)->Commit();
  GF_CHECK(key.ok()) << key.status();
  return *key;
}

void BM_Save(benchmark::State& state) {
  const auto store = OpenStore(EmptyFolder());
  const std::string piece(kPieceBytes, 'x');
  int64_t bytes = 0;
  int number = 0;
  for (auto _ : state) {
    const SegmentKey key = Save(store.get(), SegmentOf(state.range(0), ++number), piece);
    state.PauseTiming();
    bytes += store->Find(key)->bytes;
    GF_CHECK(store->Delete(key).ok());
    state.ResumeTiming();
  }
  state.SetBytesProcessed(bytes);
}

// What BM_Save writes, as one file by write and fdatasync alone.
void BM_DiskWrite(benchmark::State& state) {
  const std::string folder = EmptyFolder(), piece(kPieceBytes, 'x');
  std::filesystem::create_directory(folder);
  const auto header = NewSegmentHeader(SegmentOf(state.range(0), 1));
  const int64_t bytes = header->FileBytes(true);
  for (auto _ : state) {
    const std::string path = folder + "/file";
    const int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    for (int64_t left = bytes; left > 0; left -= kPieceBytes) {
      GF_CHECK(write(fd, piece.data(), std::min(left, kPieceBytes)) > 0);
    }
    GF_CHECK_EQ(fdatasync(fd), 0);
    close(fd);
    state.PauseTiming();
    std::filesystem::remove(path);
    state.ResumeTiming();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

// From the system's cache of the file: what is measured is the store's own work beside read alone.
template <bool kStore>
void BM_Load(benchmark::State& state) {
  const std::string folder = EmptyFolder();
  const auto store = OpenStore(folder);
  const SegmentKey key = Save(store.get(), SegmentOf(state.range(0), 1), std::string(kPieceBytes, 'x'));
  std::string piece(kPieceBytes, '\0');
  for (auto _ : state) {
    if (!kStore) {
      const int fd = open(absl::StrCat(folder, "/", Hex(key), ".segment").c_str(), O_RDONLY);
      while (read(fd, piece.data(), piece.size()) > 0) benchmark::DoNotOptimize(piece.data());
      close(fd);
      continue;
    }
    const auto reader = store->Load(key);
    const auto& sections = (*reader)->layout().sections;
    for (size_t i = 0; i < sections.size(); ++i) {
      for (int64_t at = 0; at < sections[i].bytes; at += kPieceBytes) {
        const auto size = static_cast<size_t>(std::min(kPieceBytes, sections[i].bytes - at));
        GF_CHECK((*reader)->Read(static_cast<int>(i), at, {piece.data(), size}).ok());
      }
    }
  }
  state.SetBytesProcessed(state.iterations() * store->Find(key)->bytes);
}

// Files with nothing but holes behind their headers: only these are read.
void BM_Start(benchmark::State& state) {
  const std::string folder = EmptyFolder();
  OpenStore(folder).reset();
  for (int i = 0; i < state.range(0); ++i) {
    const SegmentSpec segment = SegmentOf(1000, i);
    SegmentHeader header = *NewSegmentHeader(segment);
    header.key = KeyOf(segment, {i});
    const std::string path = absl::StrCat(folder, "/", Hex(header.key), ".segment"),
                      bytes = EncodeSegmentHeader(header);
    const int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0600);
    GF_CHECK(write(fd, bytes.data(), bytes.size()) > 0 && ftruncate(fd, header.FileBytes(true)) == 0);
    close(fd);
  }
  for (auto _ : state) GF_CHECK_EQ(OpenStore(folder)->totals().segments, state.range(0));
  std::filesystem::remove_all(folder);
}

BENCHMARK(BM_Save)->Arg(1000)->Arg(1'000'000)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(BM_DiskWrite)->Arg(1000)->Arg(1'000'000)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(BM_Load<true>)->Arg(1000)->Arg(1'000'000)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(BM_Load<false>)->Arg(1000)->Arg(1'000'000)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(BM_Start)->Arg(10'000)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace goldfinch
