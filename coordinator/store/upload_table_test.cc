#include "coordinator/store/upload_table.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

UploadKey KeyOf(int number, const std::string& owner = "alice") { return {owner, absl::StrCat("upload ", number)}; }

class UploadTableTest : public testing::Test {
 protected:
  // One that nobody works with.
  Upload* Add(const UploadKey& key, double now, const std::string& client = "alice") {
    const auto added = table_.Add(key, client, now, &removed_);
    EXPECT_TRUE(added.ok()) << added.status();
    if (!added.ok()) return nullptr;
    EXPECT_TRUE((*added)->busy);
    (*added)->busy = false;
    return *added;
  }

  UploadTable table_{{.uploads_max = 5, .uploads_of_client_max = 3}};
  UploadTable::Removed removed_;
};

TEST_F(UploadTableTest, UploadsAreOfTheirOwners) {
  Upload* const alice = Add(KeyOf(1, "alice"), 0);
  Upload* const bob = Add(KeyOf(1, "bob"), 0, "bob");
  EXPECT_NE(alice, bob);
  EXPECT_EQ(table_.Find(KeyOf(1, "alice")), alice);
  EXPECT_EQ(table_.Find(KeyOf(2, "alice")), nullptr);
  EXPECT_NE(table_.Remove(KeyOf(1, "alice")), nullptr);
  EXPECT_EQ(table_.Remove(KeyOf(1, "alice")), nullptr);
  EXPECT_EQ(table_.Find(KeyOf(1, "bob")), bob);
}

TEST_F(UploadTableTest, IdleAndOldOnesGo) {
  Add(KeyOf(1), 0);
  Upload* const used = Add(KeyOf(2), 0);
  Upload* const busy = Add(KeyOf(3), 0);
  busy->busy = true;
  used->used = 500;
  EXPECT_THAT(table_.Sweep(599), IsEmpty());
  EXPECT_THAT(table_.Sweep(600), SizeIs(1));
  EXPECT_EQ(table_.Find(KeyOf(1)), nullptr);
  used->used = 86'399;
  EXPECT_THAT(table_.Sweep(86'399), IsEmpty());
  EXPECT_THAT(table_.Sweep(86'400), SizeIs(1)) << "one that trickles for a day";
  EXPECT_EQ(table_.Find(KeyOf(3)), busy) << "while a call works with it";
}

TEST_F(UploadTableTest, AClientReplacesOnlyWhatItHasLeft) {
  for (int i = 0; i < 3; ++i) Add(KeyOf(i), i);
  const absl::Status full = table_.Add(KeyOf(3), "alice", 59, &removed_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(full.ToString(), HasSubstr("the client has 3 uploads that are not finished"));
  EXPECT_THAT(removed_, IsEmpty());
  Add(KeyOf(3), 60);
  EXPECT_THAT(removed_, SizeIs(1));
  EXPECT_EQ(table_.Find(KeyOf(0)), nullptr) << "the one that was idle for the longest time";
  for (int i = 1; i < 4; ++i) table_.Find(KeyOf(i))->busy = true;
  EXPECT_TRUE(absl::IsResourceExhausted(table_.Add(KeyOf(4), "alice", 300, &removed_).status()));
}

TEST_F(UploadTableTest, AllTogetherAreLimitedToo) {
  for (int i = 0; i < 5; ++i) Add(KeyOf(i), 0, absl::StrCat("client ", i));
  const absl::Status full = table_.Add(KeyOf(5), "client 5", 100, &removed_).status();
  EXPECT_THAT(full.ToString(), HasSubstr("there are 5 uploads"));
  EXPECT_EQ(table_.size(), 5u);
  Add(KeyOf(5), 600, "client 5");
  EXPECT_EQ(table_.size(), 1u) << "the others' time was over";
}

TEST_F(UploadTableTest, TheirBytesAreAShareOfTheStore) {
  Upload* const first = Add(KeyOf(1), 0);
  Upload* const second = Add(KeyOf(2), 0);
  Upload* const bobs = Add(KeyOf(1, "bob"), 0, "bob");
  EXPECT_TRUE(absl::IsResourceExhausted(table_.Take(first, 501, 1000)));
  EXPECT_EQ(table_.Take(first, 300, 1000), absl::OkStatus());
  const absl::Status full = table_.Take(second, 201, 1000);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.ToString(), HasSubstr("unfinished uploads of the client have 300 B of the limit, 500 B"));
  EXPECT_EQ(table_.Take(second, 200, 1000), absl::OkStatus());
  EXPECT_THAT(table_.Take(bobs, 251, 1000).ToString(), HasSubstr("unfinished uploads have 500 B of the limit, 750 B"));
  EXPECT_EQ(table_.Take(bobs, 250, 1000), absl::OkStatus());
  EXPECT_EQ(table_.bytes(), 750);
  table_.Remove(KeyOf(1));
  EXPECT_EQ(table_.bytes(), 450);
  table_.Finish(second, {"doc", 7}, 0);
  EXPECT_EQ(table_.bytes(), 250);
}

TEST_F(UploadTableTest, WhatIsFinishedIsRememberedForAWhileAndKeepsNobodyOut) {
  for (int i = 0; i < 3; ++i) table_.Finish(Add(KeyOf(i), 0), {"doc", 7}, 10);
  for (int i = 3; i < 6; ++i) Add(KeyOf(i), 10);
  EXPECT_EQ(table_.Find(KeyOf(0))->finished->etag, 7u);
  EXPECT_THAT(table_.Sweep(69), IsEmpty());
  EXPECT_THAT(table_.Sweep(70), SizeIs(3));
  for (int i = 0; i < 100; ++i) table_.Finish(Add(KeyOf(100 + i, "bob"), 80, "bob"), {"doc", 7}, 80);
  EXPECT_EQ(table_.size(), 3u + 5u) << "not without limit";
}

}  // namespace
}  // namespace goldfinch
