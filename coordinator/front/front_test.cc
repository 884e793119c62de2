#include "coordinator/front/front.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/test_certificates.h"
#include "coordinator/front/admission.h"
#include "coordinator/front/front_test_util.h"
#include "coordinator/front/h2_test_util.h"
#include "coordinator/front/raw_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;

TEST_F(FrontTest, RelaysBothWays) {
  Start();
  RawClient client = Connect();
  const FrontConnection connection = Taken(0);
  EXPECT_EQ(connection.peer.host, "127.0.0.1");
  EXPECT_EQ(ReadFrom(connection.fd, Opening().size()), Opening());
  ExpectServed(client, connection.fd);
}

TEST_F(FrontTest, RelaysMuch) {
  Start();
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  ReadFrom(fd, Opening().size());
  std::string bytes = OpenStream(1) + Data(1, Prefix(5'000'000) + std::string(5'000'000, 'x'), true);
  std::thread sender([&] { EXPECT_TRUE(client.Send(bytes)); });
  std::string received;
  while (received.size() < bytes.size()) {
    const std::string part = ReadFrom(fd, 1);
    if (part.empty()) break;
    received += part;
  }
  sender.join();
  EXPECT_TRUE(received == bytes);
}

TEST_F(FrontTest, AServerThatDoesNotReadStopsTheClient) {
  FrontOptions options;
  options.limits.message_bytes_max = 60'000'000;
  Start(options);
  RawClient client = Connect();
  Taken(0);
  EXPECT_TRUE(client.Send(OpenStream(1) + Data(1, Prefix(60'000'000), false)));
  const std::string part = Data(1, std::string(16'000, 'x'), false);
  size_t sent = 0;
  while (sent < 60'000'000 && client.Send(part, 0.5)) sent += part.size();
  // What the kernel's buffers hold, and 100 KB of the front.
  EXPECT_LT(sent, size_t{20'000'000});
}

TEST_F(FrontTest, AnAddressThatBreaksTheRulesAgainAndAgainWaits) {
  Start();
  RawClient open = Connect();
  const int fd = Taken(0).fd;
  for (int i = 0; i < Admission::kFaultsAtOnce + 2; ++i) {
    RawClient client(front_->port());
    EXPECT_TRUE(client.Send("GET /metrics HTTP/1.1\r\n\r\n"));
    bool ended = false;
    client.ReadToEnd(&ended);
    EXPECT_TRUE(ended);
  }
  RawClient held = Connect();
  ReadFrom(fd, Opening().size());
  ExpectServed(open, fd);  // an open connection goes on
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(taken_.size(), 1U);
  }
  const int held_fd = Taken(1).fd;
  ReadFrom(held_fd, Opening().size());
  ExpectServed(held, held_fd);
}

TEST_F(FrontTest, WhatIsNotHttp2IsClosed) {
  Start();
  RawClient client(front_->port());
  EXPECT_TRUE(client.Send("GET /metrics HTTP/1.1\r\n\r\n"));
  bool ended = false;
  EXPECT_EQ(client.ReadToEnd(&ended), "");
  EXPECT_TRUE(ended);
}

TEST_F(FrontTest, ARefusedConnectionHearsWhy) {
  Start();
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  ReadFrom(fd, Opening().size());
  EXPECT_TRUE(client.Send(FrameHeader((16 << 20) - 1, h2::kHeaders, 0, 1)));
  bool ended = false;
  const std::vector<TestFrame> frames = FramesOf(client.ReadToEnd(&ended));
  EXPECT_TRUE(ended);
  ASSERT_EQ(frames.size(), 1U);
  EXPECT_EQ(frames[0].type, h2::kGoAway);
  EXPECT_EQ(frames[0].payload,
            Number(0, 4) + Number(h2::kFrameSizeError, 4) + "HEADERS of 16777215 bytes, the limit is 16384");
  EXPECT_EQ(ReadFrom(fd, 1), "") << "the server sees the end";
}

TEST_F(FrontTest, ASlowHandshakeEnds) {
  FrontOptions options;
  options.limits.handshake_seconds = 0.2;
  const TestAuthority authority(testing::TempDir(), "slow");
  options.tls = authority.Issue("slow_server");
  options.tls.roots.clear();
  Start(options);
  RawClient silent(front_->port()), half(front_->port());
  EXPECT_TRUE(half.Send(std::string("\x16\x03\x01", 3)));
  // One that has done TLS and says no more.
  RawClient mute(front_->port());
  EXPECT_TRUE(mute.StartTls());
  for (RawClient* client : {&silent, &half, &mute}) {
    bool ended = false;
    client->ReadToEnd(&ended);
    EXPECT_TRUE(ended);
  }
}

TEST_F(FrontTest, AnUnfinishedFrameEnds) {
  FrontOptions options;
  options.limits.header_seconds = 0.2;
  Start(options);
  RawClient client = Connect();
  EXPECT_TRUE(client.Send(MakeFrame(h2::kHeaders, 0, 1, "x")));
  bool ended = false;
  EXPECT_THAT(client.ReadToEnd(&ended), HasSubstr("a header block that is not complete after 0.2 s"));
  EXPECT_TRUE(ended);
}

TEST_F(FrontTest, AHalfClosedConnectionGetsItsAnswer) {
  Start();
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  client.EndWriting();
  EXPECT_EQ(ReadFrom(fd, Opening().size() + 1), Opening()) << "and then the end";
  const std::string answer = Answer(std::string(10'000, 'a'));
  for (int i = 0; i < 100; ++i) {
    std::string rest = answer;
    while (!rest.empty()) {
      const ssize_t count = send(fd, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (count > 0) rest.erase(0, count);
      if (count < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (i >= 20) client.Read(1);
    }
  }
  shutdown(fd, SHUT_RDWR);
  bool ended = false;
  client.ReadToEnd(&ended);
  EXPECT_TRUE(ended);
}

TEST_F(FrontTest, TheServersLastBytesArrive) {
  Start();
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  const std::string answer = Answer(std::string(16'000, 'a'));
  ASSERT_EQ(send(fd, answer.data(), answer.size(), MSG_NOSIGNAL), static_cast<ssize_t>(answer.size()));
  shutdown(fd, SHUT_RDWR);
  // Bytes that nobody reads any more must not reset the connection.
  client.Send(MakeFrame(h2::kPing, 0, 0, "12345678"));
  bool ended = false;
  EXPECT_EQ(client.ReadToEnd(&ended), answer);
  EXPECT_TRUE(ended);
}

TEST_F(FrontTest, BothKindsOfAddresses) {
  FrontOptions options;
  options.hosts = {"::"};
  Start(options);
  RawClient ipv4(front_->port()), ipv6(front_->port(), "::1");
  EXPECT_TRUE(ipv4.Send(Opening()));
  EXPECT_EQ(Taken(0).peer.host, "127.0.0.1") << "not ::ffff:127.0.0.1";
  EXPECT_TRUE(Taken(0).peer.loopback);
  EXPECT_TRUE(ipv6.Send(Opening()));
  EXPECT_EQ(Taken(1).peer.host, "::1");
  EXPECT_THAT(Taken(1).peer.Text(), testing::StartsWith("[::1]:"));
}

TEST_F(FrontTest, SeveralAddresses) {
  for (const std::vector<std::string>& hosts :
       {std::vector<std::string>{"127.0.0.1", "::1"}, {"0.0.0.0", "::"}, {"localhost"}, {"127.0.0.1", "127.0.0.2"}}) {
    FrontOptions options;
    options.hosts = hosts;
    Start(options);
    RawClient one(front_->port());
    if (hosts[0] != "localhost") RawClient(front_->port(), hosts.back() == "127.0.0.2" ? "127.0.0.2" : "::1");
  }
}

TEST_F(FrontTest, ATakenPortIsAnError) {
  Start();
  FrontOptions options;
  options.port = front_->port();
  const absl::Status status = Front::Start(options, {}).status();
  EXPECT_EQ(std::string(status.message()),
            "cannot listen on 127.0.0.1:" + std::to_string(options.port) + ": the port is taken");
  options.hosts = {"::"};
  EXPECT_EQ(Front::Start(options, {}).status().code(), absl::StatusCode::kUnavailable);
  options.hosts = {"192.0.2.1"};
  EXPECT_THAT(Front::Start(options, {}).status().ToString(), HasSubstr("the address is not this machine's"));
}

TEST_F(FrontTest, ConnectionsAreLimited) {
  FrontOptions options;
  options.limits.connections_max = 2;
  Start(options);
  RawClient first = Connect(), second = Connect();
  Taken(1);
  RawClient third(front_->port());
  bool ended = false;
  third.ReadToEnd(&ended);
  EXPECT_TRUE(ended);
  ReadFrom(Taken(0).fd, Opening().size());
  ExpectServed(first, Taken(0).fd);
  // There is room again when one has ended.
  second.Close();
  EXPECT_EQ(ReadFrom(Taken(1).fd, Opening().size() + 1), Opening());
  shutdown(Taken(1).fd, SHUT_RDWR);
  while (true) {
    RawClient fourth(front_->port());
    fourth.Send(Opening());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (taken_.size() > 2) break;
  }
}

// Takes every descriptor that the process may still have.
class NoDescriptors {
 public:
  NoDescriptors() {
    getrlimit(RLIMIT_NOFILE, &limit_);
    rlimit low = limit_;
    low.rlim_cur = 300;
    setrlimit(RLIMIT_NOFILE, &low);
    for (int fd = open("/dev/null", O_RDONLY); fd >= 0; fd = open("/dev/null", O_RDONLY)) fds_.push_back(fd);
  }
  ~NoDescriptors() {
    for (const int fd : fds_) close(fd);
    setrlimit(RLIMIT_NOFILE, &limit_);
  }

 private:
  rlimit limit_{};
  std::vector<int> fds_;
};

double CpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

TEST_F(FrontTest, RecoversWhenDescriptorsRunOut) {
  Start();
  RawClient before = Connect();
  ReadFrom(Taken(0).fd, Opening().size());
  std::vector<int> sockets;
  for (int i = 0; i < 5; ++i) sockets.push_back(socket(AF_INET, SOCK_STREAM, 0));
  {
    const NoDescriptors none;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(front_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const double cpu_before = CpuSeconds();
    // Each is closed with the reserved descriptor.
    for (const int fd : sockets) {
      EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
      EXPECT_EQ(ReadFrom(fd, 1), "");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    EXPECT_LT(CpuSeconds() - cpu_before, 0.4) << "it spins";
    ExpectServed(before, Taken(0).fd);
  }
  for (const int fd : sockets) close(fd);
  RawClient after = Connect();
  ReadFrom(Taken(1).fd, Opening().size());
  ExpectServed(after, Taken(1).fd);
}

TEST_F(FrontTest, RaisesTheLimitOfDescriptors) {
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low = before;
  low.rlim_cur = 256;
  setrlimit(RLIMIT_NOFILE, &low);
  Start();
  rlimit after{};
  getrlimit(RLIMIT_NOFILE, &after);
  EXPECT_EQ(after.rlim_cur, std::min<rlim_t>(before.rlim_max, 1 << 20));
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST_F(FrontTest, RenewedCertificatesAreForNewConnections) {
  const std::string folder = testing::TempDir();
  const TestAuthority authority(folder, "renewals");
  const TlsFiles before = authority.Issue("before"), after = authority.Issue("after");
  FrontOptions options;
  options.tls = {folder + "/live.pem", folder + "/live.key", ""};
  CopyFile(before.certificate, options.tls.certificate);
  CopyFile(before.key, options.tls.key);
  Start(options);
  RawClient old(front_->port());
  ASSERT_TRUE(old.StartTls());
  EXPECT_EQ(old.ServerName(), "before");
  EXPECT_TRUE(old.Send(Opening()));
  const int fd = Taken(0).fd;
  ReadFrom(fd, Opening().size());

  const auto name = [&] {
    RawClient client(front_->port());
    return client.StartTls() ? client.ServerName() : "";
  };
  // A certificate without its key changes nothing, on request either.
  CopyFile(after.certificate, options.tls.certificate);
  front_->ReloadTls();
  EXPECT_EQ(name(), "before");
  CopyFile(after.key, options.tls.key);
  std::string now;
  for (int i = 0; i < 200 && now != "after"; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    now = name();
    EXPECT_NE(now, "");
  }
  EXPECT_EQ(now, "after");
  ExpectServed(old, fd);
  CopyFile(before.certificate, options.tls.certificate);
  CopyFile(before.key, options.tls.key);
  front_->ReloadTls();
  EXPECT_EQ(name(), "before");
}

TEST_F(FrontTest, ShutdownWaitsForTheServerAndNoLonger) {
  Start();
  RawClient client = Connect();
  const int fd = Taken(0).fd;
  RawClient opening(front_->port());
  front_->StopListening();
  bool ended = false;
  opening.ReadToEnd(&ended);
  EXPECT_TRUE(ended) << "it was not handed on";
  std::thread server([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const std::string answer = Answer("last");
    EXPECT_EQ(send(fd, answer.data(), answer.size(), MSG_NOSIGNAL), static_cast<ssize_t>(answer.size()));
    shutdown(fd, SHUT_RDWR);
  });
  front_->Shutdown(20);
  server.join();
  EXPECT_EQ(client.ReadToEnd(&ended), Answer("last"));
  EXPECT_TRUE(ended);
  front_->Shutdown(20);
}

TEST_F(FrontTest, ShutdownClosesWhatDoesNotEnd) {
  Start();
  RawClient client = Connect();
  Taken(0);
  front_->Shutdown(0.1);
  bool ended = false;
  client.ReadToEnd(&ended);
  EXPECT_TRUE(ended);
}

TEST_F(FrontTest, ManyClientsAtOnce) {
  const std::string folder = testing::TempDir();
  const TestAuthority authority(folder, "many");
  FrontOptions options;
  options.tls = authority.Issue("many_server");
  options.tls.roots.clear();
  Start(options);
  std::atomic<bool> stop = false;
  // Sends everything back as the payload of a frame.
  std::thread server([&] {
    std::vector<std::thread> threads;
    for (size_t i = 0; !stop; ++i) {
      std::unique_lock<std::mutex> lock(mutex_);
      if (!changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return taken_.size() > i; })) {
        --i;
        continue;
      }
      const int fd = taken_[i].fd;
      threads.emplace_back([fd] {
        for (std::string bytes = ReadFrom(fd, 1); !bytes.empty(); bytes = ReadFrom(fd, 1)) {
          const std::string answer = Answer("x");
          if (send(fd, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) break;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        RawClient client(front_->port());
        ASSERT_TRUE(client.StartTls());
        ASSERT_TRUE(client.Send(Opening() + OpenStream(1)));
        for (int part = 0; part < 20; ++part) {
          ASSERT_TRUE(client.Send(Data(1, Prefix(30'000) + std::string(30'000, 'x'), false)));
        }
        ASSERT_EQ(client.Read(10), Answer("x"));
      }
    });
  }
  for (int i = 0; i < 20; ++i) front_->ReloadTls();
  for (std::thread& client : clients) client.join();
  front_->Shutdown(0.1);
  stop = true;
  server.join();
}

}  // namespace
}  // namespace goldfinch
