// Stages connect to each other whatever strangers do at their ports.
#include "worker/transport/keyed_sockets.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/host_port.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

constexpr char kKey[] = "the key of a generation";
constexpr double kPatienceSeconds = 60;

// A connection of someone who just connects.
Socket Dial(const std::string& address) {
  const HostPort parsed = *ParseHostPort(address);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(parsed.port));
  EXPECT_EQ(inet_pton(AF_INET, parsed.host.c_str(), &to.sin_addr), 1);
  Socket stranger(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(stranger.fd(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  return stranger;
}

void Say(const Socket& socket, const std::string& bytes) {
  // The other end may have dropped the connection.
  [[maybe_unused]] const ssize_t sent = send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

std::string Hear(const Socket& socket, size_t bytes) {
  std::string heard(bytes, '\0');
  const ssize_t got = recv(socket.fd(), heard.data(), bytes, MSG_WAITALL);
  heard.resize(got < 0 ? 0 : got);
  return heard;
}

// Stage 0 sends to stage 1.
class KeyedSocketsTest : public testing::Test {
 protected:
  void Listen(const std::string& sender_key = kKey, const std::string& receiver_key = kKey) {
    sender = *KeyedSockets::Listen("127.0.0.1", sender_key, 0, {false, false});
    receiver = *KeyedSockets::Listen("127.0.0.1", receiver_key, 1, {true, false});
  }

  // Connects the two, and checks that bytes go from one to the other.
  void ExpectConnected() {
    absl::StatusOr<KeyedSockets::Sockets> received;
    std::thread accept([&] { received = receiver->Connect({"", ""}, kPatienceSeconds); });
    const absl::StatusOr<KeyedSockets::Sockets> sent = sender->Connect({"", receiver->address()}, kPatienceSeconds);
    accept.join();
    ASSERT_TRUE(sent.ok()) << sent.status();
    ASSERT_TRUE(received.ok()) << received.status();
    EXPECT_LT(sent->from[1].fd(), 0);
    EXPECT_LT(received->to[0].fd(), 0);
    char byte = 'x';
    ASSERT_EQ(send(sent->to[1].fd(), &byte, 1, MSG_NOSIGNAL), 1);
    ASSERT_EQ(HearWaiting(received->from[0]), "x") << "nothing of a stranger is in the way";
  }

  // The socket does not block.
  static std::string HearWaiting(const Socket& socket) {
    char byte = 0;
    while (recv(socket.fd(), &byte, 1, 0) != 1) std::this_thread::yield();
    return {byte};
  }

  std::unique_ptr<KeyedSockets> sender, receiver;
};

TEST_F(KeyedSocketsTest, OnlyReceiversListen) {
  Listen();
  EXPECT_EQ(sender->address(), "");
  EXPECT_THAT(receiver->address(), HasSubstr("127.0.0.1:"));
  ExpectConnected();
}

TEST_F(KeyedSocketsTest, StrangersBeforeTheStageAreWaitedPast) {
  Listen();
  std::vector<Socket> strangers;
  for (int i = 0; i < 8; ++i) strangers.push_back(Dial(receiver->address()));  // silent ones
  strangers.push_back(Dial(receiver->address()));
  Say(strangers.back(), std::string(1000, 'x'));
  strangers.push_back(Dial(receiver->address()));
  Say(strangers.back(), "GET / HTTP/1.1\r\n\r\n");
  Dial(receiver->address());  // goes at once, as a port scan does
  ExpectConnected();
}

TEST_F(KeyedSocketsTest, MoreStrangersThanThereIsRoomFor) {
  Listen();
  std::vector<Socket> strangers;
  for (size_t i = 0; i < KeyedSockets::kStrangersMax + 20; ++i) strangers.push_back(Dial(receiver->address()));
  ExpectConnected();
}

// Whoever knows the form but not the key gets no further, nor does whoever repeats what a stage has said.
TEST_F(KeyedSocketsTest, ARepeatedGreetingAndProofAreRefused) {
  Listen();
  absl::StatusOr<KeyedSockets::Sockets> received;
  std::thread accept([&] { received = receiver->Connect({"", ""}, kPatienceSeconds); });
  std::string hello, proof;
  {
    // An honest handshake, overheard: this relays every byte between the sender and the receiver.
    const Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in own = {};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(own);
    ASSERT_EQ(bind(listener.fd(), reinterpret_cast<const sockaddr*>(&own), sizeof(own)), 0);
    ASSERT_EQ(listen(listener.fd(), 1), 0);
    ASSERT_EQ(getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&own), &size), 0);
    const std::string here = HostPort{"127.0.0.1", ntohs(own.sin_port)}.ToString();
    std::thread dial([&] { EXPECT_FALSE(sender->Connect({"", here}, kPatienceSeconds).ok()); });
    const Socket from_sender(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    const Socket to_receiver = Dial(receiver->address());
    hello = Hear(from_sender, 56);
    ASSERT_EQ(hello.size(), 56U);
    Say(to_receiver, hello);
    const std::string answer = Hear(to_receiver, 64);
    ASSERT_EQ(answer.size(), 64U);
    Say(from_sender, answer);
    proof = Hear(from_sender, 32);
    ASSERT_EQ(proof.size(), 32U);
    // The last message does not get through.
    sender->Abort();
    dial.join();
  }
  const Socket replay = Dial(receiver->address());
  Say(replay, hello);
  EXPECT_EQ(Hear(replay, 64).size(), 64U) << "a new challenge";
  Say(replay, proof);
  EXPECT_EQ(Hear(replay, 1), "") << "the old proof does not fit";
  // The receiver still waits for its stage.
  sender = *KeyedSockets::Listen("127.0.0.1", kKey, 0, {false, false});
  EXPECT_TRUE(sender->Connect({"", receiver->address()}, kPatienceSeconds).ok());
  accept.join();
  EXPECT_TRUE(received.ok()) << received.status();
}

TEST_F(KeyedSocketsTest, AnotherKeyIsAnErrorOfTheSenderAndNothingToTheReceiver) {
  Listen("another key", kKey);
  absl::StatusOr<KeyedSockets::Sockets> received;
  std::thread accept([&] { received = receiver->Connect({"", ""}, kPatienceSeconds); });
  const absl::Status status = sender->Connect({"", receiver->address()}, kPatienceSeconds).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not have the key of this generation"));
  sender = *KeyedSockets::Listen("127.0.0.1", kKey, 0, {false, false});
  EXPECT_TRUE(sender->Connect({"", receiver->address()}, kPatienceSeconds).ok());
  accept.join();
  EXPECT_TRUE(received.ok()) << received.status();
}

TEST_F(KeyedSocketsTest, AReceiverTakesOnlyTheStagesThatItExpects) {
  Listen();
  const auto third = *KeyedSockets::Listen("127.0.0.1", kKey, 2, {false, false, false});
  absl::StatusOr<KeyedSockets::Sockets> received;
  std::thread accept([&] { received = receiver->Connect({"", ""}, kPatienceSeconds); });
  EXPECT_FALSE(third->Connect({"", receiver->address(), ""}, 0.3).ok()) << "stage 2 sends nothing to stage 1";
  receiver->Abort();
  accept.join();
  EXPECT_THAT(std::string(received.status().message()), HasSubstr("the group has ended"));
}

TEST_F(KeyedSocketsTest, BadAddresses) {
  for (const std::string bad : {"x", "127.0.0.1", "127.0.0.1:0", "host.invalid:1", "300.1.1.1:1"}) {
    Listen();
    EXPECT_EQ(sender->Connect({"", bad}, 1).status().code(), absl::StatusCode::kUnavailable) << bad;
  }
  Listen();
  EXPECT_EQ(sender->Connect({""}, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(KeyedSockets::Listen("192.0.2.1", kKey, 1, {true, false}).ok());
}

}  // namespace
}  // namespace goldfinch
