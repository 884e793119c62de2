// The fixture of the tests of a front: it keeps the connections that are handed on.
#ifndef GOLDFINCH_COORDINATOR_FRONT_FRONT_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_FRONT_FRONT_TEST_UTIL_H_

#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/front/front.h"
#include "coordinator/front/h2_test_util.h"
#include "coordinator/front/raw_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {

inline std::string Answer(const std::string& text) { return MakeFrame(h2::kData, 0, 1, text); }

class FrontTest : public testing::Test {
 protected:
  ~FrontTest() override {
    front_.reset();
    for (const FrontConnection& connection : taken_) close(connection.fd);
  }

  void Start(FrontOptions options = {}) {
    auto front = Front::Start(std::move(options), [this](const FrontConnection& connection) {
      const std::lock_guard<std::mutex> lock(mutex_);
      taken_.push_back(connection);
      changed_.notify_all();
    });
    ASSERT_TRUE(front.ok()) << front.status();
    front_ = *std::move(front);
  }

  // The connection that was handed on as this one, from 0 on; waits for it.
  FrontConnection Taken(size_t place) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return taken_.size() > place; });
    return taken_.at(place);
  }

  RawClient Connect(const std::string& host = "127.0.0.1") {
    RawClient client(front_->port(), host);
    EXPECT_TRUE(client.Send(Opening()));
    return client;
  }

  // Both directions work.
  void ExpectServed(RawClient& client, int fd) {
    const std::string question = MakeFrame(h2::kPing, 0, 0, "question");
    EXPECT_TRUE(client.Send(question));
    EXPECT_THAT(ReadFrom(fd, question.size()), testing::HasSubstr(question));
    const std::string answer = Answer("answer");
    EXPECT_EQ(send(fd, answer.data(), answer.size(), MSG_NOSIGNAL), static_cast<ssize_t>(answer.size()));
    EXPECT_EQ(client.Read(answer.size()), answer);
  }

  static void CopyFile(const std::string& from, const std::string& to) {
    std::ofstream(to + ".new", std::ios::binary) << std::ifstream(from, std::ios::binary).rdbuf();
    ASSERT_EQ(std::rename((to + ".new").c_str(), to.c_str()), 0);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<FrontConnection> taken_;  // guarded by mutex_
  std::unique_ptr<Front> front_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_FRONT_TEST_UTIL_H_
