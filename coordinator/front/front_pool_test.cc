// What clients do to each other whose messages wait for room.
#include <sys/socket.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/front/front_test_util.h"
#include "coordinator/front/h2_test_util.h"
#include "coordinator/front/raw_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;

TEST_F(FrontTest, TheLargestHolderGoesWhenOthersWait) {
  FrontOptions options;
  options.hosts = {"127.0.0.1", "::1"};
  options.limits.total_bytes_max = 4'000'000;
  options.limits.connection_bytes_max = 1'000'000;
  options.limits.message_bytes_max = 1'000'000;
  options.limits.patience_seconds = 0.5;
  Start(options);
  // They announce messages and send no more. Each address may have half of the pool.
  std::vector<RawClient> hogs;
  for (const char* host : {"127.0.0.1", "127.0.0.1", "::1", "::1"}) {
    hogs.push_back(Connect(host));
    EXPECT_TRUE(hogs.back().Send(OpenStream(1) + Data(1, Prefix(900'000), false)));
    Taken(static_cast<int>(hogs.size()) - 1);
  }
  // There is no room for this one until one of them has gone.
  RawClient waiting = Connect();
  EXPECT_TRUE(waiting.Send(OpenStream(1) + Data(1, Prefix(900'000), false)));
  Taken(4);
  bool gone = false;
  for (int tries = 0; tries < 100 && !gone; ++tries) {
    for (RawClient& hog : hogs) {
      bool ended = false;
      hog.ReadToEnd(&ended, 0.1);
      gone = gone || ended;
    }
  }
  EXPECT_TRUE(gone);
  RawClient small = Connect();
  const int fd = Taken(5).fd;
  ReadFrom(fd, Opening().size());
  ExpectServed(small, fd);
}

TEST_F(FrontTest, AResetWhileItWaitsForRoomHoldsNobodyUp) {
  FrontOptions options;
  options.hosts = {"127.0.0.1", "::1"};
  options.limits.total_bytes_max = 4'000'000;
  options.limits.connection_bytes_max = 1'000'000;
  options.limits.message_bytes_max = 1'000'000;
  Start(options);
  RawClient attacker = Connect();
  const int attacker_fd = Taken(0).fd;
  // The second message waits for room of its connection. It is reset, and then the first one, which gives room.
  const std::string both = OpenStream(1) + Data(1, Prefix(900'000), false) + OpenStream(3) +
                           Data(3, Prefix(900'000), false) + MakeFrame(h2::kReset, 0, 3, Number(8, 4)) +
                           MakeFrame(h2::kReset, 0, 1, Number(8, 4));
  EXPECT_TRUE(attacker.Send(both));
  ReadFrom(attacker_fd, Opening().size() + both.size());
  RawClient client = Connect("::1");
  const int fd = Taken(1).fd;
  const std::string message = OpenStream(1) + Data(1, Prefix(500'000) + std::string(10'000, 'x'), false);
  EXPECT_TRUE(client.Send(message));
  EXPECT_EQ(ReadFrom(fd, Opening().size() + message.size()).size(), Opening().size() + message.size());
  // The server asks for more, and the client gets to know it: its message does not wait.
  const std::string more = MakeFrame(h2::kWindowUpdate, 0, 1, Number(100'000, 4));
  EXPECT_EQ(send(fd, more.data(), more.size(), MSG_NOSIGNAL), static_cast<ssize_t>(more.size()));
  EXPECT_THAT(client.Read(more.size()), HasSubstr(more));
}

TEST_F(FrontTest, OpenCallsAreCountedOverAllConnections) {
  FrontOptions options;
  options.limits.calls_per_address_max = 1;  // from which this machine is exempt
  options.limits.calls_max = 2;
  Start(options);
  RawClient first = Connect(), second = Connect();
  const std::string call = OpenStream(1);
  EXPECT_TRUE(first.Send(call));
  EXPECT_TRUE(second.Send(call));
  const int first_fd = Taken(0).fd;
  Taken(1);
  for (const int fd : {first_fd, Taken(1).fd}) ReadFrom(fd, Opening().size() + call.size());
  RawClient third = Connect();
  const int fd = Taken(2).fd;
  EXPECT_TRUE(third.Send(call));
  const std::string reset = MakeFrame(h2::kReset, 0, 1, Number(8, 4));
  EXPECT_THAT(ReadFrom(fd, Opening().size() + call.size() + reset.size()), HasSubstr(call + reset));
  std::string refusal;
  while (refusal.find("there are 2 open calls, which is the limit") == std::string::npos) {
    const std::string more = third.Read(1);
    ASSERT_NE(more, "") << "the connection has ended";
    refusal += more;
  }
  // A call that ends makes room for one of another connection.
  EXPECT_TRUE(first.Send(reset));
  EXPECT_EQ(ReadFrom(first_fd, reset.size()), reset);
  const std::string next = OpenStream(3) + MakeFrame(h2::kPing, 0, 0, "question");
  EXPECT_TRUE(third.Send(next));
  EXPECT_EQ(ReadFrom(fd, next.size()), next);
}

TEST_F(FrontTest, AClientIsNotBlamedForAServerThatDoesNotRead) {
  FrontOptions options;
  options.limits.header_seconds = 1;
  Start(options);
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  // More than fits between client and server, so that a frame is cut somewhere.
  std::string bytes;
  for (uint32_t id = 1; id < 201; id += 2) {
    bytes += MakeFrame(h2::kHeaders, h2::kEndHeaders | h2::kEndStream, id, std::string(16'000, 'h'));
  }
  std::thread sender([&] { EXPECT_TRUE(client.Send(bytes)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
  EXPECT_EQ(ReadFrom(fd, Opening().size() + bytes.size()), Opening() + bytes);
  sender.join();
}

}  // namespace
}  // namespace goldfinch
