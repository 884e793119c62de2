#include "clients/cli/flags/flag_names.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

const std::vector<std::pair<std::string, std::string>> kMessages = {
    {"top_p is 2, the limit is 1", "--top-p is 2, the limit is 1"},
    {"sampling.top_p is 2, the limit is 1", "--top-p is 2, the limit is 1"},
    {"banned_tokens[0] is 300", "--ban[0] is 300"},
    {"stop[1] is not UTF-8", "--stop[1] is not UTF-8"},
    {"prompt has 11 tokens, max_model_len is 10", "prompt has 11 tokens, --max-model-len is 10"},
    {"lower max_model_len, max_sequences or max_step_tokens, raise gpu_memory_utilization or memory, or use more "
     "workers",
     "lower --max-model-len, --max-num-seqs or --max-num-batched-tokens, raise --gpu-memory-utilization or --memory, "
     "or "
     "use more workers"},
    {"all 3 slots for sequences (max_sequences) are taken", "all 3 slots for sequences (--max-num-seqs) are taken"},
    {"it did not become a stage within 600 s (form timeout)",
     "it did not become a stage within 600 s (--form-timeout)"},
    {"no answer to step 7 for 120 s (step timeout)", "no answer to step 7 for 120 s (--step-timeout)"},
    {"dtype is bf16, the CPU computes in f32 only", "--dtype is bf16, the CPU computes in f32 only"},
    {"device cuda:1: no CUDA driver", "--device cuda:1: no CUDA driver"},
    {"device is \"gpu\", expected auto, cpu, cuda or cuda:N",
     "--device is \"gpu\", expected auto, cpu, cuda or cuda:N"},
    {"quantized to int8: use device cpu, or a model in bf16",
     "quantized to int8: use --device cpu, or a model in bf16"},
    {"GPUs are shared: use transport tcp", "GPUs are shared: use --transport tcp"},
    {"workers must use the transport \"tcp\"", "workers must use the --transport \"tcp\""},
    {"w1: vocab is not set, and there is no file beside m.pth",
     "w1: --vocab is not set, and there is no file beside m.pth"},
    {"it sent nothing for 5 s (heartbeat timeout)", "it sent nothing for 5 s (--heartbeat-timeout)"},
    {"The limit is max_queue.", "The limit is --max-queue."},
    {"contexts cannot be kept: the server has no_prefix_cache set",
     "contexts cannot be kept: the server has --no-prefix-cache set"},
    {"contexts cannot be kept: context_memory of the workers is 0",
     "contexts cannot be kept: --context-memory of the workers is 0"},
};

TEST(FlagNamesTest, FieldsBecomeFlags) {
  for (const auto& [message, translated] : kMessages) EXPECT_EQ(NameFlags(message), translated);
}

TEST(FlagNamesTest, TranslatingTwiceDoesNoHarm) {
  for (const auto& [message, translated] : kMessages) EXPECT_EQ(NameFlags(translated), translated);
}

TEST(FlagNamesTest, OtherWordsStay) {
  for (const std::string message : {
           "",
           "out of memory",
           "of the device's 80 GB that is 40 GB",
           "the device is lost",
           "model.pth: tensor emb.weight: dtype is F64",
           "a stop of 2 s; temperature of the GPU",
           "/models/max_tokens/model.pth: cannot be read",
           "request=7 event=start max_tokens=10 n=1",
           "max_tokens.pth: cannot be read",
           "top_p_old is 2, my_top_p is 3, stop_ids has 2",
           "--max-model-len is 10, --memory and --device cpu",
           "max_model_length is 10",
       }) {
    EXPECT_EQ(NameFlags(message), message);
  }
}

TEST(FlagNamesTest, StatusKeepsCodeAndPayloads) {
  absl::Status status = absl::ResourceExhaustedError("max_queue is 3");
  status.SetPayload("url", absl::Cord("payload"));
  const absl::Status translated = NameFlags(status);
  EXPECT_EQ(translated.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(translated.message(), "--max-queue is 3");
  EXPECT_EQ(translated.GetPayload("url"), absl::Cord("payload"));
  EXPECT_TRUE(NameFlags(absl::OkStatus()).ok());
}

TEST(FlagNamesTest, OfARequestOnlyTheFirstFieldIsNamed) {
  EXPECT_EQ(NameRequestFlag("sampling.top_p is 2, the limit is 1"), "--top-p is 2, the limit is 1");
  EXPECT_EQ(NameRequestFlag("banned_tokens[0] is 300"), "--ban[0] is 300");
  EXPECT_EQ(NameRequestFlag("max_tokens is 9, max_model_len is 8"), "--max-tokens is 9, max_model_len is 8");
  EXPECT_EQ(NameRequestFlag("stop_ids has 2"), std::nullopt);
  EXPECT_EQ(NameRequestFlag("prompt has 11 tokens, max_model_len is 10"), std::nullopt);
  EXPECT_EQ(NameRequestFlag("the queue is full (max_queue)"), std::nullopt);
}

}  // namespace
}  // namespace goldfinch
