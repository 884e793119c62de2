#include "worker/model/workspace.h"

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

Workspace MakeWorkspace(int64_t bytes) {
  return Workspace(std::shared_ptr<void>(std::aligned_alloc(64, bytes), std::free), bytes);
}

TEST(WorkspaceTest, TensorsAreAlignedAndApart) {
  Workspace workspace = MakeWorkspace(1024);
  const Tensor first = workspace.Take({3, 5});
  const Tensor second = workspace.Take({1});
  EXPECT_EQ(first.shape, (Shape{3, 5}));
  EXPECT_EQ(first.dtype, DType::kF32);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data) % 64, 0u);
  EXPECT_EQ(static_cast<char*>(second.data) - static_cast<char*>(first.data), 64);
}

TEST(WorkspaceTest, AFrameGivesBackWhatWasTakenInIt) {
  Workspace workspace = MakeWorkspace(1024);
  const Tensor before = workspace.Take({16});
  void* first = nullptr;
  for (int i = 0; i < 100; ++i) {
    const Workspace::Frame frame(workspace);
    const Tensor outer = workspace.Take({100});
    {
      const Workspace::Frame inner(workspace);
      workspace.Take({100});
    }
    if (i == 0) first = outer.data;
    EXPECT_EQ(outer.data, first);
  }
  EXPECT_EQ(static_cast<char*>(workspace.Take({16}).data) - static_cast<char*>(before.data), 64);
}

TEST(WorkspaceTest, AllOfItCanBeTaken) {
  Workspace workspace = MakeWorkspace(1024);
  EXPECT_EQ(workspace.Take({256}).bytes(), 1024);
}

TEST(WorkspaceDeathTest, TooMuch) {
  Workspace workspace = MakeWorkspace(1024);
  EXPECT_DEATH(workspace.Take({257}), "too small");
}

}  // namespace
}  // namespace goldfinch
