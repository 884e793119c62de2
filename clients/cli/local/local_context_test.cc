// goldfinch generate --context FILE, without a server.
#include "clients/cli/local/local_context.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/local/model.h"
#include "clients/cli/remote/remote_test_util.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint_test_util.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

constexpr char kText[] = "In the beginning there was a text that somebody had read before. ";
constexpr char kQuestion[] = "And then?";

std::vector<int32_t> IdsOf(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

// The file of the context that a model has after the text.
std::string FileOf(Engine& engine, const std::string& text, bool logits) {
  const std::vector<int32_t> ids = IdsOf(text);
  const auto count = static_cast<int64_t>(ids.size());
  const int slot = engine.stage().Open().value();
  const absl::Span<const float> last = engine.Prefill(slot, ids, [](int64_t) {}).value();
  SegmentSpec spec;
  spec.model = ContextModelOf(engine);
  spec.end = count;
  spec.has_snapshot = true;
  spec.gold_position = engine.stage().gold_position(slot);
  spec.has_logits = logits;
  const SegmentLayout layout = LayOut(spec).value();
  std::vector<std::string> sections(layout.sections.size());
  SavedSegment segment{.begin = 0, .end = count, .gold_position = spec.gold_position};
  for (const StatePart& part : engine.stage().saved_parts()) {
    if (!IsContextPart(part.kind)) continue;
    std::string& section = sections[layout.Find(spec.model, part.layer, part.kind)];
    const int64_t rows = part.per_token() ? count : 1;
    section.resize(rows * part.bytes());
    segment.parts.push_back(std::make_shared<const SavedPart>(
        SavedPart{.part = part, .rows = rows, .ranges = {{section.data(), rows * part.bytes()}}}));
  }
  engine.stage().Save(slot, {}, segment)->Wait();
  for (size_t i = 0; i < sections.size(); ++i) {
    if (layout.sections[i].what == SegmentSection::What::kIds) {
      for (const int32_t id : ids)
        sections[i].append(reinterpret_cast<const char*>(&id), BytesOf(layout.sections[i].type));
    }
    if (layout.sections[i].what == SegmentSection::What::kLogits) {
      sections[i].assign(reinterpret_cast<const char*>(last.data()), last.size() * sizeof(float));
    }
  }
  return ExchangeFile(spec, sections).value();
}

class LocalContextTest : public testing::Test {
 protected:
  static std::string ModelFile(uint64_t seed, const std::vector<std::string>& layers) {
    std::string path = testing::TempDir() + "/local_context_" + std::to_string(seed) + ".safetensors";
    EXPECT_TRUE(WriteSafetensors(path, RandomModel({.layers = layers, .vocab_size = 257, .seed = seed})).ok());
    return path;
  }

  static GenerateOptions Options(const std::string& model) {
    GenerateOptions options;
    options.model.model = model;
    options.model.vocab = "bytes";
    options.model.max_model_len = 4096;
    options.model.backend.threads = 1;
    options.has_prompt = true;
    options.max_tokens = 12;
    options.has_max_tokens = true;
    options.has_seed = true;
    options.seed = 5;
    options.logprobs = 2;
    options.json = true;
    return options;
  }

  // Tokens with their log-probabilities, which are equal only if the logits are.
  static nlohmann::json Answer(const GenerateOptions& options) {
    const CommandOutput output = RunCommand(RunGenerate, options);
    EXPECT_TRUE(output.status.ok()) << output.status;
    return nlohmann::json::parse(output.out, nullptr, /*allow_exceptions=*/false);
  }

  const std::string path_ = testing::TempDir() + "/context.safetensors";
};

TEST_F(LocalContextTest, GoesOnWithTheBitsOfTheWholePrompt) {
  const std::vector<std::vector<std::string>> families = {
      {"finch_c2", "finch_c2", "gold", "gold"}, {"finch", "gptalpha", "gold"}, {"finch", "finch"}, {"llama", "llama"}};
  for (const std::vector<std::string>& layers : families) {
    for (const char* cache_dtype : {"bf16", "int8"}) {
      if (layers.back() != "gold" || layers[1] == "gptalpha") {
        if (std::string(cache_dtype) == "int8") continue;  // only the compressed cache has it
      }
      SCOPED_TRACE(testing::PrintToString(layers) + cache_dtype);
      GenerateOptions options = Options(ModelFile(1, layers));
      options.model.cache_dtype = cache_dtype;
      {
        const auto engine = OpenEngine(options.model, 1);
        ASSERT_TRUE(engine.ok()) << engine.status();
        WriteTestFile(path_, FileOf(**engine, kText, /*logits=*/true));
      }
      for (const std::string question : {kQuestion, ""}) {
        options.context = "";
        options.prompt = kText + question;
        const nlohmann::json whole = Answer(options);
        options.context = path_;
        options.prompt = question;
        const nlohmann::json over = Answer(options);
        EXPECT_EQ(over["tokens"], whole["tokens"]);
        EXPECT_EQ(over["tokens"].size(), 12u);
        EXPECT_EQ(over["prompt_tokens"], whole["prompt_tokens"]);
        EXPECT_EQ(over["cached_tokens"], std::strlen(kText));
        EXPECT_EQ(whole["cached_tokens"], 0);
      }
    }
  }
}

// A tuned state as a context is as good as one in the model's own file, which is compared with the papers' mathematics
// in tests/parity.
TEST_F(LocalContextTest, BeginsWithATunedState) {
  const std::string model = testing::TempDir() + "/local_context_model.safetensors";
  const std::string merged = testing::TempDir() + "/local_context_merged.safetensors";
  for (const std::vector<std::string>& layers :
       std::vector<std::vector<std::string>>{{"eagle", "eagle"},
                                             {"finch", "finch"},
                                             {"finch_c2", "finch_c2", "gold", "gold"},
                                             {"finch_c2", "gptalpha"}}) {
    SCOPED_TRACE(testing::PrintToString(layers));
    std::vector<TestTensor> all = RandomModel({.layers = layers, .vocab_size = 257, .time_state = true, .seed = 3});
    std::vector<TestTensor> weights, states;
    for (TestTensor& tensor : all) {
      (tensor.name.ends_with(".time_state") ? states : weights).push_back(tensor);
    }
    ASSERT_TRUE(WriteSafetensors(merged, all).ok() && WriteSafetensors(model, weights).ok());
    const std::string poet = testing::TempDir() + "/poet.pth", poet_too = testing::TempDir() + "/poet.safetensors";
    ASSERT_TRUE(WritePth(poet, states).ok() && WriteSafetensors(poet_too, states).ok());

    GenerateOptions options = Options(merged);
    options.prompt = kQuestion;
    const nlohmann::json expected = Answer(options);
    options = Options(model);
    options.prompt = kQuestion;
    EXPECT_NE(Answer(options)["tokens"], expected["tokens"]);
    for (const std::string& file : {poet, poet_too}) {
      options.context = file;
      const nlohmann::json tuned = Answer(options);
      EXPECT_EQ(tuned["tokens"], expected["tokens"]);
      EXPECT_EQ(tuned["prompt_tokens"], std::strlen(kQuestion));
      EXPECT_EQ(tuned["cached_tokens"], 0);
    }

    options.prompt = "";
    EXPECT_THAT(std::string(RunCommand(RunGenerate, options).status.message()), HasSubstr("a prompt is required"));
  }
}

TEST_F(LocalContextTest, RefusesTunedStatesOfOtherModels) {
  const std::string poet = testing::TempDir() + "/poet_of_another.pth";
  GenerateOptions options = Options(ModelFile(1, {"finch_c2", "finch_c2", "gold"}));
  options.prompt = kQuestion;
  options.context = poet;
  const auto error = [&](std::vector<TestTensor> tensors) {
    EXPECT_TRUE(WritePth(poet, tensors).ok());
    const CommandOutput output = RunCommand(RunGenerate, options);
    EXPECT_FALSE(output.status.ok());
    return std::string(output.status.message());
  };
  const auto state = [](int layer, float value) {
    return TestTensor{"blocks." + std::to_string(layer) + ".att.time_state",
                      DType::kBf16,
                      {1, 64, 64},
                      std::vector<float>(64 * 64, value)};
  };
  EXPECT_THAT(error({state(0, 1)}), HasSubstr(poet + ": has no blocks.1.att.time_state"));
  EXPECT_THAT(error({state(0, 1), state(1, 1), state(2, 1)}), HasSubstr("holds blocks.2.att.time_state"));
  EXPECT_THAT(error(RandomModel({.layers = {"finch_c2"}})), HasSubstr("which is no part of a tuned state"));
  WriteTestFile(poet, "PK, but no archive");
  EXPECT_FALSE(RunCommand(RunGenerate, options).status.ok());

  options.model.model = ModelFile(4, {"llama", "gptalpha"});
  ASSERT_TRUE(WritePth(poet, {state(0, 1)}).ok());
  const absl::Status status = RunCommand(RunGenerate, options).status;
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a tuned state is for recurrent layers"));
}

TEST_F(LocalContextTest, RefusesWhatDoesNotFit) {
  GenerateOptions options = Options(ModelFile(1, {"finch_c2", "finch_c2", "gold"}));
  {
    const auto engine = OpenEngine(options.model, 1);
    ASSERT_TRUE(engine.ok()) << engine.status();
    WriteTestFile(path_, FileOf(**engine, kText, /*logits=*/false));
  }
  options.context = path_;
  options.prompt = "";
  CommandOutput output = RunCommand(RunGenerate, options);
  EXPECT_THAT(std::string(output.status.message()), HasSubstr("the context ends without logits"));
  EXPECT_EQ(ExitCode(output.status), 2);
  options.prompt = kQuestion;
  EXPECT_TRUE(RunCommand(RunGenerate, options).status.ok());

  GenerateOptions wrong = options;
  wrong.model.model = ModelFile(2, {"finch_c2", "finch_c2", "gold"});
  output = RunCommand(RunGenerate, wrong);
  EXPECT_TRUE(absl::IsFailedPrecondition(output.status)) << output.status;
  EXPECT_THAT(std::string(output.status.message()), HasSubstr(path_ + ": the context is of "));
  wrong = options;
  wrong.model.cache_dtype = "f32";
  EXPECT_TRUE(absl::IsFailedPrecondition(RunCommand(RunGenerate, wrong).status));
  wrong = options;
  wrong.model.max_model_len = 10;
  EXPECT_THAT(std::string(RunCommand(RunGenerate, wrong).status.message()),
              HasSubstr("has 65 tokens, max_model_len is 10"));
  wrong = options;
  wrong.context = path_ + ".missing";
  EXPECT_TRUE(absl::IsNotFound(RunCommand(RunGenerate, wrong).status));
}

}  // namespace
}  // namespace goldfinch
