#include "kernels/open_backend.h"

#include <cstdlib>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Hides what GPUs there are, before anything can look for them.
class HiddenGpus : public testing::Environment {
 public:
  void SetUp() override { ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "", /*overwrite=*/1), 0); }
};
const testing::Environment* const kHiddenGpus = testing::AddGlobalTestEnvironment(new HiddenGpus);

void ExpectError(const BackendOptions& options, absl::StatusCode code, const testing::Matcher<std::string>& message) {
  const absl::Status status = OpenBackend(options).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), message);
}

TEST(OpenBackendTest, TheCpu) {
  for (const char* dtype : {"auto", "f32"}) {
    std::string no_cuda = "left over";
    const auto backend = OpenBackend({.device = "cpu", .dtype = dtype, .threads = 2}, &no_cuda);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT((*backend)->Describe(), StartsWith("cpu, 2 threads"));
    EXPECT_EQ((*backend)->threads(), 2);
    EXPECT_EQ((*backend)->activation_dtype(), DType::kF32);
    EXPECT_EQ(no_cuda, "") << "nobody asked for CUDA";
  }
}

TEST(OpenBackendTest, AutoTakesTheCpuAndSaysWhy) {
  std::string no_cuda;
  const auto backend = OpenBackend({.threads = 1}, &no_cuda);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->Describe(), StartsWith("cpu, "));
  EXPECT_THAT(no_cuda, HasSubstr("CUDA"));
  EXPECT_TRUE(OpenBackend({.threads = 1}).ok());
}

TEST(OpenBackendTest, CudaThatWasAskedFor) {
  for (const std::string device : {"cuda", "cuda:0", "cuda:1"}) {
    ExpectError({.device = device}, absl::StatusCode::kUnavailable,
                AllOf(StartsWith("device " + device + ": "), HasSubstr("CUDA")));
  }
}

TEST(OpenBackendTest, TheCpuComputesInF32) {
  for (const std::string dtype : {"f16", "bf16"}) {
    ExpectError({.device = "cpu", .dtype = dtype}, absl::StatusCode::kInvalidArgument,
                "dtype is " + dtype + ", the CPU computes in f32 only");
    ExpectError({.dtype = dtype}, absl::StatusCode::kInvalidArgument,
                AllOf(StartsWith("dtype is " + dtype + ", the CPU computes in f32 only ("), HasSubstr("CUDA")));
  }
}

TEST(OpenBackendTest, ValuesThatAreNone) {
  for (const std::string device : {"", "gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda: 1",
                                   "cuda:1 ", "cuda:10000", "cuda:99999999999", "cuda1"}) {
    EXPECT_FALSE(IsDeviceName(device)) << device;
    ExpectError({.device = device}, absl::StatusCode::kInvalidArgument,
                "device is \"" + device + "\", expected auto, cpu, cuda or cuda:N");
  }
  for (const std::string device : {"auto", "cpu", "cuda", "cuda:0", "cuda:17"}) EXPECT_TRUE(IsDeviceName(device));
  for (const std::string dtype : {"", "f64", "BF16", "u16"}) {
    ExpectError({.device = "cpu", .dtype = dtype}, absl::StatusCode::kInvalidArgument,
                "dtype is \"" + dtype + "\", expected auto, f32, f16 or bf16");
  }
}

}  // namespace
}  // namespace goldfinch
