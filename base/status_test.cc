#include "base/status.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

absl::Status Through(const absl::Status& status, bool* went_on) {
  GF_RETURN_IF_ERROR(status);
  *went_on = true;
  return absl::OkStatus();
}

TEST(StatusTest, ReturnIfErrorPassesTheErrorUp) {
  bool went_on = false;
  EXPECT_EQ(Through(absl::NotFoundError("model.pth"), &went_on), absl::NotFoundError("model.pth"));
  EXPECT_FALSE(went_on);
}

TEST(StatusTest, ReturnIfErrorGoesOnWhenOk) {
  bool went_on = false;
  EXPECT_TRUE(Through(absl::OkStatus(), &went_on).ok());
  EXPECT_TRUE(went_on);
}

absl::StatusOr<int> Sum(absl::StatusOr<std::unique_ptr<int>> a, absl::StatusOr<std::unique_ptr<int>> b) {
  GF_ASSIGN_OR_RETURN(std::unique_ptr<int> first, std::move(a));
  GF_ASSIGN_OR_RETURN(std::unique_ptr<int> second, std::move(b));
  return *first + *second;
}

TEST(StatusTest, AssignOrReturnMovesTheValueOut) {
  EXPECT_EQ(*Sum(std::make_unique<int>(2), std::make_unique<int>(3)), 5);
}

TEST(StatusTest, AssignOrReturnPassesTheErrorUp) {
  EXPECT_EQ(Sum(std::make_unique<int>(2), absl::DataLossError("truncated")).status(), absl::DataLossError("truncated"));
}

}  // namespace
}  // namespace goldfinch
