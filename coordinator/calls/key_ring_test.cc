#include "coordinator/calls/key_ring.h"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr char kKey[] = "0123456789abcdef";
constexpr char kOther[] = "another-key-of-someone";

class KeyRingTest : public testing::Test {
 protected:
  void Write(const std::string& text) const {
    std::ofstream(path_ + ".new") << text;
    ASSERT_EQ(std::rename((path_ + ".new").c_str(), path_.c_str()), 0);
  }
  std::shared_ptr<KeyRing> Open(double poll_seconds = 1000) const {
    auto ring = KeyRing::Open(path_, poll_seconds);
    EXPECT_TRUE(ring.ok()) << ring.status();
    return *ring;
  }

  const std::string path_ =
      testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name() + "_keys.txt";
};

TEST_F(KeyRingTest, KnowsTheKeysOfTheFileAndNoOthers) {
  Write(std::string(kKey) + "\n" + kOther + "\n");
  const auto ring = Open();
  EXPECT_EQ(ring->Find(kKey)->client->name, "key-1");
  EXPECT_EQ(ring->Find(kOther)->client->name, "key-2");
  EXPECT_EQ(ring->Find(kKey)->client, ring->Find(kKey)->client);
  for (const std::string wrong :
       {"", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0", "0123456789abcdef "}) {
    EXPECT_EQ(ring->Find(wrong).status(), absl::UnauthenticatedError("the API key is not known"));
  }
}

TEST_F(KeyRingTest, AFileThatIsNotThere) {
  const absl::Status status = KeyRing::Open("/nowhere/keys.txt").status();
  EXPECT_EQ(status, absl::NotFoundError("/nowhere/keys.txt: cannot be read: No such file or directory"));
}

TEST_F(KeyRingTest, AKeyExpires) {
  Write(std::string("keys:\n- name: guest\n  key: ") + kKey + "\n  expires: 2027-01-01T00:00:00Z\n");
  const auto ring = Open();
  const absl::Time end = absl::FromCivil(absl::CivilSecond(2027, 1, 1), absl::UTCTimeZone());
  EXPECT_TRUE(ring->Find(kKey, end - absl::Seconds(1)).ok());
  EXPECT_EQ(ring->Find(kKey, end).status(),
            absl::UnauthenticatedError("the API key guest expired at 2027-01-01T00:00:00+00:00"));
}

TEST_F(KeyRingTest, OperatorsAreNeededOnceAKeyHasRoles) {
  Write(std::string("keys:\n- name: guest\n  key: ") + kKey + "\n");
  const auto ring = Open();
  EXPECT_TRUE(ring->Find(kKey)->may_operate) << "no roles at all";
  Write(std::string("keys:\n- name: guest\n  key: ") + kKey + "\n- name: admin\n  roles: [operator]\n  key: " + kOther +
        "\n");
  EXPECT_TRUE(ring->Reload().ok());
  EXPECT_FALSE(ring->Find(kKey)->may_operate);
  EXPECT_TRUE(ring->Find(kOther)->may_operate);
}

TEST_F(KeyRingTest, AReloadKeepsTheClientsThatStayTheSame) {
  const std::string guest = std::string("keys:\n- name: guest\n  key: ") + kKey + "\n";
  Write(guest);
  const auto ring = Open();
  const auto client = ring->Find(kKey)->client;
  Write(guest + "- name: more\n  key: " + kOther + "\n");
  EXPECT_EQ(ring->Find(kOther).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(ring->Reload().ok());
  EXPECT_TRUE(ring->Find(kOther).ok());
  EXPECT_EQ(ring->Find(kKey)->client, client);
  Write(guest + "  limits: {max_running: 2}\n");
  EXPECT_TRUE(ring->Reload().ok());
  EXPECT_NE(ring->Find(kKey)->client, client);
  EXPECT_EQ(ring->Find(kKey)->client->limits.max_running, 2);
  EXPECT_FALSE(ring->Find(kOther).ok());
}

TEST_F(KeyRingTest, ABadFileKeepsTheOldKeys) {
  Write(kKey);
  const auto ring = Open();
  Write("keys:\n- {");
  EXPECT_EQ(ring->Reload().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(ring->Find(kKey).ok());
  std::remove(path_.c_str());
  EXPECT_EQ(ring->Reload().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(ring->Find(kKey).ok());
}

TEST_F(KeyRingTest, AChangedFileIsReadByItself) {
  Write(kKey);
  const auto ring = Open(0.01);
  const auto await = [&](const char* key) {
    while (!ring->Find(key).ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  Write(kOther);
  await(kOther);
  EXPECT_FALSE(ring->Find(kKey).ok());
  std::ofstream(path_) << kKey << "\n";  // in place
  await(kKey);
}

}  // namespace
}  // namespace goldfinch
