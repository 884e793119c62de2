#include "worker/model/model_config.h"

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Write(const std::string& name, const std::string& text) {
  std::string path = absl::StrCat(testing::TempDir(), "/model_config_test_", name);
  EXPECT_TRUE(WriteFile(path, text).ok());
  return path;
}

ModelConfig Read(const std::string& name, const std::string& text) {
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(Write(name, text));
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

void ExpectError(const std::string& name, const std::string& text, const std::string& message) {
  const std::string path = Write(name, text);
  const absl::Status status = ReadModelConfig(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(message))) << text;
}

TEST(ModelConfigTest, Defaults) {
  for (const ModelConfig& config :
       {Read("a.json", "{}"), Read("a.yaml", "model: {}"), Read("b.yaml", "{}"), ModelConfig()}) {
    EXPECT_FALSE(config.rope_base.has_value());
    EXPECT_TRUE(config.use_v2);
    EXPECT_TRUE(config.use_one_minus_w);
    EXPECT_FALSE(config.head_size.has_value());
    EXPECT_FALSE(config.layers.has_value());
    EXPECT_FALSE(config.width.has_value());
    EXPECT_FALSE(config.vocab_size.has_value());
    EXPECT_EQ(config.vocabulary, "");
  }
}

TEST(ModelConfigTest, Json) {
  const ModelConfig config = Read("all.json", R"({"tmix": "x060c2", "tmix2": "gold", "n_layer": 24, "n_embd": 2048,
    "vocab_size": 65536, "rope_base": 10000, "use_v2": 0, "use_one_minus_w": false, "head_size": 32,
    "vocabulary": "world", "something_else": [1, {"n_layer": 5}]})");
  EXPECT_EQ(config.tmix, "x060c2");
  EXPECT_EQ(config.tmix2, "gold");
  EXPECT_EQ(config.layers, 24);
  EXPECT_EQ(config.width, 2048);
  EXPECT_EQ(config.vocab_size, 65536);
  EXPECT_EQ(config.rope_base, 10000);
  EXPECT_FALSE(config.use_v2);
  EXPECT_FALSE(config.use_one_minus_w);
  EXPECT_EQ(config.head_size, 32);
  EXPECT_EQ(config.vocabulary, "world");
}

TEST(ModelConfigTest, TheAuthorsYaml) {
  const ModelConfig config = Read("authors.yaml", R"(
# as published
model:
  tmix: x060c2
  tmix2: gold
  n_layer: 12
  n_embd: 768
  vocab_size: 65536
  rope:
    base: 5e5
    rebase: 1
  use_one_minus_w: 0
  use_v2: true
  list: [1, 2]
train:
  n_layer: 99
)");
  EXPECT_EQ(config.tmix, "x060c2");
  EXPECT_EQ(config.tmix2, "gold");
  EXPECT_EQ(config.layers, 12);
  EXPECT_EQ(config.width, 768);
  EXPECT_EQ(config.rope_base, 500000);
  EXPECT_FALSE(config.use_one_minus_w);
  EXPECT_TRUE(config.use_v2);
}

TEST(ModelConfigTest, NullIsNotGiven) {
  EXPECT_FALSE(Read("null.json", R"({"rope_base": null, "rope": null, "n_layer": null})").rope_base.has_value());
  EXPECT_FALSE(Read("null.yml", "model:\n  rope: null\n  n_layer:\n").rope_base.has_value());
}

TEST(ModelConfigTest, ErrorsNameTheKeyAndTheValue) {
  ExpectError("a.json", R"({"n_layer": "many"})", "n_layer is \"many\", expected a number from 1 to 1000");
  ExpectError("b.json", R"({"n_layer": 0})", "n_layer is 0");
  ExpectError("c.json", R"({"n_layer": 1e30})", "n_layer is 1e+30");
  ExpectError("d.json", R"({"n_embd": -5})", "n_embd is -5");
  ExpectError("e.json", R"({"head_size": 24})", "head_size is 24, expected a multiple of 16");
  ExpectError("f.json", R"({"use_v2": 2})", "use_v2 is 2");
  ExpectError("g.json", R"({"use_v2": "yes"})", "use_v2 is \"yes\"");
  ExpectError("h.json", R"({"rope_base": -1})", "rope_base is -1");
  ExpectError("i.json", R"({"vocabulary": "klingon"})", "vocabulary is \"klingon\", expected \"bytes\" or \"world\"");
  ExpectError("j.json", R"({"vocabulary": 5})", "vocabulary is 5");
  ExpectError("k.json", R"({"vocab_size": [1]})", "vocab_size is [1]");
  ExpectError("l.yaml", "model: {n_layer: twelve}", "n_layer is \"twelve\"");
  ExpectError("m.yaml", "model: {rope: {base: .nan}}", "base is \".nan\"");
  ExpectError("n.yaml", "model: {n_embd: nan}", "n_embd is \"nan\"");
  ExpectError("q.yaml", "model: {n_layer: \xff\xfe}", "n_layer is \"");
  ExpectError("o.json", R"({"n_layer": 2.5})", "n_layer is 2.5, expected an integer");
  ExpectError("p.yaml", "model: {n_layer: 2.5}", "n_layer is 2.5, expected an integer");
}

TEST(ModelConfigTest, FilesThatAreNoConfigs) {
  ExpectError("1.json", "", "not JSON");
  ExpectError("2.json", "{\"n_layer\": ", "not JSON");
  ExpectError("3.json", "[1, 2]", "expected a map");
  ExpectError("4.json", "5", "expected a map");
  ExpectError("5.json", "\xff\xfe\x01\x02", "not JSON");
  ExpectError("6.yaml", "", "expected a map");
  ExpectError("7.yaml", "model: [1, 2]", "expected a map");
  ExpectError("8.yaml", "model: text", "expected a map");
  ExpectError("9.yaml", "just text", "");
  ExpectError("10.yaml", "a: b: c: {", "not YAML");
  ExpectError("11.yaml", "*undefined", "not YAML");
  ExpectError("12.json", std::string(2 << 20, ' '), "more than 1048576 bytes");
  ExpectError("13.yaml", "[1, 2]", "");
}

// A parser that follows them by recursion would run out of stack.
TEST(ModelConfigTest, DeepNesting) {
  const std::string deep(500'000, '[');
  EXPECT_FALSE(ReadModelConfig(Write("deep.json", "{\"a\": " + deep)).ok());
  EXPECT_FALSE(ReadModelConfig(Write("deep.yaml", "a: " + deep)).ok());
  const std::string closed = "{\"a\": " + deep + std::string(deep.size(), ']') + "}";
  EXPECT_TRUE(ReadModelConfig(Write("closed.json", closed)).ok());
}

// Nine lines of aliases that stand for 10^8 nodes.
TEST(ModelConfigTest, ExplodingAliases) {
  std::string text = "a0: &a0 {k: 1}\n";
  for (int level = 1; level <= 8; ++level) {
    absl::StrAppend(&text, "a", level, ": &a", level, " {");
    for (int i = 0; i < 10; ++i) absl::StrAppend(&text, i == 0 ? "" : ", ", "k", i, ": *a", level - 1);
    absl::StrAppend(&text, "}\n");
  }
  EXPECT_EQ(Read("aliases.yaml", text + "n_layer: 3\n").layers, 3);
}

TEST(ModelConfigTest, MissingFile) {
  const absl::Status status = ReadModelConfig(testing::TempDir() + "/is_not_there.json").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is_not_there.json"));
  EXPECT_FALSE(ReadModelConfig(testing::TempDir()).ok()) << "a folder";
}

TEST(ModelConfigTest, FindsTheOneBesideTheModel) {
  const std::string folder = testing::TempDir() + "/model_config_test_beside";
  std::filesystem::create_directories(folder);
  const absl::StatusOr<ModelConfig> none = FindModelConfig("", folder + "/model.pth");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->layers.has_value());

  ASSERT_TRUE(WriteFile(folder + "/config.json", R"({"n_layer": 3})").ok());
  EXPECT_EQ(FindModelConfig("", folder + "/model.pth")->layers, 3);
  EXPECT_EQ(FindModelConfig("", folder)->layers, 3) << "a model that is a folder";
  EXPECT_EQ(FindModelConfig(Write("explicit.json", R"({"n_layer": 4})"), folder + "/model.pth")->layers, 4);
  EXPECT_EQ(FindModelConfig(folder + "/nowhere.json", folder + "/model.pth").status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFile(folder + "/config.json", "{").ok());
  EXPECT_FALSE(FindModelConfig("", folder + "/model.pth").ok()) << "a broken config is not passed over";
}

}  // namespace
}  // namespace goldfinch
