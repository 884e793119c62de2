#include "kernels/cuda/cuda_library.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch::cuda {
namespace {

using testing::HasSubstr;

// A library that every system has, which the tests put into folders under another name.
std::string SystemLibrary() {
  for (const char* path : {"/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"}) {
    if (access(path, R_OK) == 0) return path;
  }
  return "";
}

class CudaLibraryTest : public testing::Test {
 protected:
  void SetUp() override {
    if (SystemLibrary().empty()) GTEST_SKIP() << "no libm.so.6 where Linux systems have it";
  }
  void Put(const std::string& folder) {
    std::filesystem::create_directories(folder);
    std::filesystem::remove(folder + "/libnobody.so.13");
    std::filesystem::create_symlink(SystemLibrary(), folder + "/libnobody.so.13");
  }
  const std::string folder_ = testing::TempDir() + "cuda_library_test";
};

TEST_F(CudaLibraryTest, NamesThePlacesWhereItIsNot) {
  const auto library = OpenCudaLibrary("libnobody.so.12");
  ASSERT_FALSE(library.ok());
  EXPECT_TRUE(absl::IsUnavailable(library.status()));
  EXPECT_THAT(library.status().ToString(), HasSubstr("no libnobody.so.12 in the system's libraries, "));
  EXPECT_THAT(library.status().ToString(), HasSubstr("GOLDFINCH_CUDA_LIBRARIES"));
}

TEST_F(CudaLibraryTest, IsFoundInFoldersThatAreNamed) {
  Put(folder_ + "/given");
  setenv("GOLDFINCH_CUDA_LIBRARIES", ("/nowhere:" + folder_ + "/given").c_str(), 1);
  EXPECT_TRUE(OpenCudaLibrary("libnobody.so.13").ok());
  unsetenv("GOLDFINCH_CUDA_LIBRARIES");
  EXPECT_FALSE(OpenCudaLibrary("libnobody.so.13").ok());
}

TEST_F(CudaLibraryTest, IsFoundInPythonPackages) {
  Put(folder_ + "/venv/lib/python3.12/site-packages/nvidia/cu13/lib");
  setenv("VIRTUAL_ENV", (folder_ + "/venv").c_str(), 1);
  EXPECT_TRUE(OpenCudaLibrary("libnobody.so.13").ok());
  unsetenv("VIRTUAL_ENV");
}

}  // namespace
}  // namespace goldfinch::cuda
