// What workers say of the parts that they save is what the coordinator expects, for every family of models.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/stage_extent.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/store/segment.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/model_memory.h"
#include "worker/model/random_model.h"
#include "worker/model/state_parts.h"
#include "worker/model_description.h"

namespace goldfinch {
namespace {

// All splits of so many layers.
std::vector<std::vector<int>> Splits(int layers) {
  std::vector<std::vector<int>> splits;
  for (int cuts = 0; cuts < 1 << (layers - 1); ++cuts) {
    std::vector<int>& split = splits.emplace_back(1, 0);
    for (int layer = 1; layer < layers; ++layer) {
      if (cuts >> (layer - 1) & 1) split.push_back(layer);
    }
  }
  return splits;
}

TEST(ShelfPartsTest, OfEveryFamilyAndSplit) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  for (const std::vector<std::string>& layers :
       std::vector<std::vector<std::string>>{{"finch_c2", "finch_c2", "gold", "gold"},
                                             {"finch", "gold"},
                                             {"finch", "gptalpha", "finch"},
                                             {"eagle"},
                                             {"llama", "llama"},
                                             {"finch_c2", "gptalpha", "gold"}}) {
    for (const int64_t vocab_size : {int64_t{40}, int64_t{65600}}) {
      const auto checkpoint = OpenTensors(RandomModel({.layers = layers, .vocab_size = vocab_size}));
      const auto measured = MeasureModel(*checkpoint, {}, /*in_place=*/true);
      ASSERT_TRUE(measured.ok()) << measured.status();
      const ModelShape& shape = (*measured)->shape;
      for (const DType cache_dtype : {DType::kF32, DType::kF16, DType::kBf16, DType::kInt8}) {
        cluster::v1::Described described;
        DescribeModel(*checkpoint, shape, {}, cache_dtype, MemoryOf(**measured, cache_dtype, *backend), &described);
        std::vector<ContextModel> models;
        for (const std::vector<int>& split : Splits(shape.layers())) {
          std::vector<ShelfStage> stages;
          for (size_t i = 0; i < split.size(); ++i) {
            const int last = i + 1 < split.size() ? split[i + 1] : shape.layers();
            cluster::v1::Joined joined;
            DescribeParts(StageSavedParts(shape, cache_dtype, {shape.layers(), shape.finch_layers(), split[i], last}),
                          &joined);
            absl::StatusOr<ShelfStage> stage = ReadShelfStage(joined, described, split[i], last);
            ASSERT_TRUE(stage.ok()) << stage.status() << " of " << layers[0];
            stages.push_back(*std::move(stage));
          }
          absl::StatusOr<ShelfGroup> group = MakeShelfGroup({"f", "world", "f16", "cpu-f32", kContextFormat},
                                                            vocab_size, shape.layers(), std::move(stages));
          ASSERT_TRUE(group.ok()) << group.status();
          models.push_back(group->model);
          EXPECT_EQ(models.back(), models.front());
        }
        SegmentSpec segment;
        segment.model = models.front();
        segment.end = 100;
        segment.has_snapshot = segment.has_logits = true;
        const absl::StatusOr<SegmentLayout> layout = LayOut(segment);
        EXPECT_TRUE(layout.ok()) << layout.status();
      }
    }
  }
}

}  // namespace
}  // namespace goldfinch
