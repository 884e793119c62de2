#include "tokenizer/open.h"

#include <fstream>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tokenizer/test_vocabulary.h"

namespace goldfinch {
namespace {

TEST(OpenTokenizer, BytesByNameByConfigAndBySize) {
  for (const auto& [vocab, configured, size] :
       {std::tuple("bytes", "", 0), std::tuple("bytes", "world", 65536), std::tuple("", "bytes", 300),
        std::tuple("", "", 256), std::tuple("", "", 257)}) {
    const auto tokenizer = OpenTokenizer(vocab, "/nowhere", configured, size);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->vocab_size(), 257);
  }
}

TEST(OpenTokenizer, ElseAFile) {
  EXPECT_EQ(OpenTokenizer("", "/nowhere/model.pth", "", 65536).status().code(), absl::StatusCode::kNotFound);
  // A configuration that says otherwise wins over the size.
  EXPECT_EQ(OpenTokenizer("", "/nowhere/model.pth", "world", 257).status().code(), absl::StatusCode::kNotFound);
}

TEST(OpenTokenizer, RefusesIdsThatTheModelLacks) {
  const std::string path = testing::TempDir() + "/vocabulary.txt";
  std::ofstream(path) << SingleByteLines() << "257 'the' 3\n";
  EXPECT_TRUE(OpenTokenizer(path, "", "", 258).ok());
  EXPECT_TRUE(OpenTokenizer(path, "", "", 0).ok());
  const absl::Status status = OpenTokenizer(path, "", "", 257).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), path + ": the vocabulary has ids up to 257, the model has only 257 ids");
}

TEST(MakeSamplerVocabulary, IdsWithTextAndTheEndOfText) {
  const auto vocabulary = MakeSamplerVocabulary(*Tokenizer::Bytes(), 260);
  EXPECT_EQ(vocabulary->size(), 260);
  EXPECT_TRUE(vocabulary->sampleable(0));
  EXPECT_TRUE(vocabulary->sampleable(256));
  EXPECT_FALSE(vocabulary->sampleable(257));
  EXPECT_EQ(vocabulary->limit(), 257);
  EXPECT_TRUE(vocabulary->repeats_freely('7' + 1));
  EXPECT_FALSE(vocabulary->repeats_freely('x' + 1));
  EXPECT_FALSE(vocabulary->repeats_freely(0));
}

}  // namespace
}  // namespace goldfinch
