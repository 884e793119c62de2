// Whole models with quantized weights: how far their logits are from the definitions, and that these are the same bits
// however the tokens are cut, batched and split.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/pipeline.h"
#include "worker/model/fake_device.h"
#include "worker/model/quantize_model.h"

namespace goldfinch {
namespace {

// The limit of ||ours - expected|| / ||expected||. The golden models have random weights, on which little averages out
// and six layers add up.
double Limit(DType dtype) { return dtype == DType::kInt8 ? 0.1 : 0.6; }

class QuantizedTest : public testing::TestWithParam<std::tuple<std::string, DType>> {
 public:
  QuantizedTest() {
    const std::string path = absl::StrCat(testing::TempDir(), "/", golden.name, "_", Name(dtype), ".safetensors");
    const auto report = QuantizeModel(*golden.checkpoint, path, {.dtype = dtype, .overwrite = true, .threads = 2});
    GF_CHECK(report.ok()) << report.status();
    GF_CHECK(report->unfit.empty());
    auto opened = Checkpoint::Open(path);
    GF_CHECK(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
  }

  Pipeline MakePipeline(Backend& device, const std::vector<int>& cuts = {}) {
    return Pipeline(device, checkpoint, golden.config, ExactOptions(), cuts);
  }
  int64_t tokens() const { return static_cast<int64_t>(golden.tokens.size()); }

  const GoldenCase golden = ReadGoldenCase(std::get<0>(GetParam()));
  const DType dtype = std::get<1>(GetParam());
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/2);
  std::shared_ptr<const Checkpoint> checkpoint;
};

TEST_P(QuantizedTest, CloseToTheDefinitionsInChunksOfAnySize) {
  Pipeline pipeline = MakePipeline(*backend);
  const std::vector<float> whole = pipeline.AllLogits(golden.tokens, tokens());
  const double error = RelativeError(whole, golden.logits);
  EXPECT_LE(error, Limit(dtype));
  EXPECT_GE(error, 1e-4) << "was it quantized at all?";
  RecordProperty("relative_error", absl::StrCat(error));
  std::printf("%-18s %s: relative error %.2g, the limit is %.2g\n", golden.name.c_str(), Name(dtype), error,
              Limit(dtype));
  for (int64_t chunk_tokens : {1, 7, 16, 64}) {
    EXPECT_EQ(pipeline.AllLogits(golden.tokens, chunk_tokens), whole) << "chunks of " << chunk_tokens;
  }
}

TEST_P(QuantizedTest, SameBitsOnStagesThreadsAndDevices) {
  Pipeline whole = MakePipeline(*backend);
  const std::vector<float> expected = whole.AllLogits(golden.tokens, tokens());
  std::vector<int> cuts;
  for (int layer = 1; layer < whole.shape().layers(); ++layer) cuts.push_back(layer);
  EXPECT_EQ(MakePipeline(*backend, cuts).AllLogits(golden.tokens, 48), expected);
  const std::unique_ptr<Backend> three_threads = MakeCpuBackend(/*threads=*/3);
  EXPECT_EQ(MakePipeline(*three_threads).AllLogits(golden.tokens, 48), expected);
  FakeDevice device(*backend);  // whose memory the host cannot touch
  EXPECT_EQ(MakePipeline(device).AllLogits(golden.tokens, 48), expected);
}

// Three sequences of one batch, decoding and pre-filling together.
TEST_P(QuantizedTest, SameBitsInABatch) {
  Pipeline alone = MakePipeline(*backend), together = MakePipeline(*backend);
  const absl::Span<const int32_t> all = golden.tokens;
  const std::vector<absl::Span<const int32_t>> sequences = {all, all.subspan(20, 100), all.subspan(50, 60)};
  const std::vector<int64_t> chunk_tokens = {1, 9, 25};
  std::vector<std::vector<float>> logits(3);
  std::vector<int64_t> done(3, 0);
  std::vector<int> slots(3);
  for (int& slot : slots) slot = together.Open();
  while (true) {
    std::vector<Chunk> chunks;
    std::vector<int> owners;
    for (int i = 0; i < 3; ++i) {
      const int64_t count = std::min<int64_t>(chunk_tokens[i], static_cast<int64_t>(sequences[i].size()) - done[i]);
      if (count == 0) continue;
      chunks.push_back({slots[i], sequences[i].subspan(done[i], count), count});
      owners.push_back(i);
      done[i] += count;
    }
    if (chunks.empty()) break;
    const std::vector<float> step = together.Forward(chunks);
    auto next = step.begin();
    for (size_t i = 0; i < chunks.size(); ++i) {
      const auto end = next + chunks[i].logit_rows * together.vocab();
      logits[owners[i]].insert(logits[owners[i]].end(), next, end);
      next = end;
    }
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(logits[i], alone.AllLogits(sequences[i], 160)) << "sequence " << i;
}

INSTANTIATE_TEST_SUITE_P(Families, QuantizedTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()),
                                          testing::Values(DType::kInt8, DType::kInt4)),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param), "_", Name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace goldfinch
