#include "coordinator/front/h2_guard.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/front/h2_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using namespace h2;  // NOLINT(google-build-using-namespace): the words of HTTP/2
using testing::HasSubstr;

class FakeBudget final : public CallBudget {
 public:
  absl::Status OpenCall() override {
    if (calls >= calls_max) return absl::ResourceExhaustedError("there are enough calls");
    ++calls;
    return absl::OkStatus();
  }
  void CloseCall() override { --calls; }
  void Take(int64_t bytes) override { held += bytes; }
  bool Reserve(int64_t bytes) override {
    if (held + bytes > most) return false;
    held += bytes;
    return true;
  }
  void Release(int64_t bytes) override { held -= bytes; }

  int64_t most = int64_t{1} << 40;
  int64_t held = 0;
  int calls_max = 1000;
  int calls = 0;
};

class H2GuardTest : public testing::Test {
 protected:
  ~H2GuardTest() override {
    EXPECT_GE(budget_.held, 0);
    EXPECT_GE(budget_.calls, 0);
  }

  // Sends bytes, whole or in pieces, and expects them to pass.
  void Pass(const std::string& bytes) {
    std::string out;
    partial_ += bytes;
    const auto consumed = guard_.FromClient(partial_, now_, &out);
    ASSERT_TRUE(consumed.ok()) << consumed.status();
    EXPECT_EQ(out, partial_.substr(0, *consumed));
    partial_.erase(0, *consumed);
    passed_ += out;
  }
  absl::Status Refused(const std::string& bytes) {
    std::string out;
    absl::Status status = guard_.FromClient(partial_ + bytes, now_, &out).status();
    EXPECT_FALSE(status.ok());
    return status;
  }
  // What reaches the client of the server's bytes.
  std::string Answer(const std::string& bytes) {
    std::string out;
    EXPECT_EQ(guard_.FromServer(bytes, &out), bytes.size());
    return out;
  }
  void Tick(double seconds) {
    now_ += seconds;
    EXPECT_TRUE(guard_.Tick(now_, &to_server_, &to_client_).ok());
  }

  FakeBudget budget_;
  FrontLimits limits_;
  double now_ = 100;
  H2Guard guard_{limits_, &budget_, now_};
  std::string partial_, passed_, to_server_, to_client_;
};

TEST_F(H2GuardTest, PassesACallByteByByte) {
  const std::string bytes = Opening() + OpenStream(1) + Data(1, Prefix(3) + "abc", true) +
                            MakeFrame(kPing, 0, 0, "12345678") + MakeFrame(32, 0, 0, "unknown");
  for (const char byte : bytes) Pass(std::string(1, byte));
  EXPECT_EQ(passed_, bytes);
  EXPECT_TRUE(guard_.open());
  EXPECT_EQ(guard_.streams(), 1U);
  Answer(MakeFrame(kHeaders, kEndHeaders | kEndStream, 1, "x"));
  EXPECT_EQ(guard_.streams(), 0U);
  EXPECT_EQ(budget_.held, 0);
}

TEST_F(H2GuardTest, WhatIsNoHttp2DoesNotPass) {
  EXPECT_THAT(Refused("GET / HTTP/1.1\r\n").ToString(), HasSubstr("does not begin as HTTP/2 does"));
  std::string out;
  H2Guard guard(limits_, &budget_, now_);
  EXPECT_FALSE(guard.FromClient(std::string(kPreface) + MakeFrame(kPing, 0, 0, "12345678"), now_, &out).ok());
}

TEST_F(H2GuardTest, FramesThatAreTooLongAreRefusedByTheirHeader) {
  Pass(Opening());
  for (int type = 0; type < 12; ++type) {
    const absl::Status status = Refused(FrameHeader(16385, static_cast<uint8_t>(type), 0, 1));
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(guard_.GoAway(status), HasSubstr(absl::StrCat(" of 16385 bytes, the limit is 16384")));
  }
}

TEST_F(H2GuardTest, HeaderBlocksAreBounded) {
  Pass(Opening());
  // A block that announces a value of 2 GB, as a header with an integer of HPACK.
  const std::string huge = std::string("\x00\x01x\x7f\x81\xff\xff\xff\x07", 9);
  Pass(MakeFrame(kHeaders, 0, 1, huge));
  for (int i = 0; i < 3; ++i) Pass(MakeFrame(kContinuation, 0, 1, std::string(16384, 'a')));
  EXPECT_THAT(Refused(FrameHeader(16384, kContinuation, 0, 1)).ToString(),
              HasSubstr("a header block of 65545 bytes, the limit is 65536"));
}

TEST_F(H2GuardTest, HeaderBlocksHaveFewFrames) {
  Pass(Opening() + MakeFrame(kHeaders, 0, 1, ""));
  for (int i = 0; i < 8; ++i) Pass(MakeFrame(kContinuation, 0, 1, ""));
  EXPECT_THAT(Refused(FrameHeader(0, kContinuation, kEndHeaders, 1)).ToString(),
              HasSubstr("a header block in more than 8 CONTINUATION frames"));
}

TEST_F(H2GuardTest, NothingComesWithinAHeaderBlock) {
  Pass(Opening() + MakeFrame(kHeaders, 0, 1, ""));
  EXPECT_FALSE(Refused(FrameHeader(0, kContinuation, 0, 3)).ok());
  EXPECT_THAT(Refused(FrameHeader(8, kPing, 0, 0)).ToString(), HasSubstr("PING comes within a header block"));
  Pass(MakeFrame(kContinuation, kEndHeaders, 1, ""));
  EXPECT_THAT(Refused(FrameHeader(0, kContinuation, 0, 1)).ToString(), HasSubstr("without an open header block"));
}

TEST_F(H2GuardTest, LayoutsAreChecked) {
  Pass(Opening() + OpenStream(1));
  for (const std::string& frame : {MakeFrame(kData, 0, 0, "x"),
                                   MakeFrame(kHeaders, kEndHeaders, 0, "x"),
                                   MakeFrame(kHeaders, kEndHeaders, 2, "x"),
                                   MakeFrame(kReset, 0, 1, "abc"),
                                   MakeFrame(kReset, 0, 3, "abcd"),
                                   MakeFrame(kPing, 0, 0, "1234567"),
                                   MakeFrame(kPing, 0, 1, "12345678"),
                                   MakeFrame(kSettings, 0, 0, "12345"),
                                   MakeFrame(kSettings, kAck, 0, "123456"),
                                   MakeFrame(kSettings, 0, 1, ""),
                                   MakeFrame(kGoAway, 0, 0, "1234567"),
                                   MakeFrame(kWindowUpdate, 0, 1, "12345"),
                                   MakeFrame(kPriority, 0, 1, "1234"),
                                   MakeFrame(kPriority, 0, 0, "12345"),
                                   MakeFrame(kPushPromise, 0, 1, "1234"),
                                   MakeFrame(kData, 0, 3, "idle"),
                                   MakeFrame(kData, kPadded, 1, ""),
                                   MakeFrame(kData, kPadded, 1, "\x02y"),
                                   MakeFrame(kHeaders, kPadded | kEndHeaders, 3, "\x05xxxx"),
                                   MakeFrame(kHeaders, kHasPriority, 3, "1234"),
                                   MakeFrame(kHeaders, kEndHeaders, 1, "second")}) {
    FakeBudget budget;
    std::string out;
    H2Guard guard(limits_, &budget, now_);
    ASSERT_TRUE(guard.FromClient(Opening() + OpenStream(1), now_, &out).ok());
    EXPECT_FALSE(guard.FromClient(frame, now_, &out).ok()) << testing::PrintToString(frame);
  }
}

TEST_F(H2GuardTest, PaddingIsNoBody) {
  Pass(Opening() + OpenStream(1) + MakeFrame(kData, kPadded, 1, std::string("\x03", 1) + Prefix(1) + "x" + "ppp") +
       MakeFrame(kData, kPadded | kEndStream, 1, std::string("\x02", 1) + "pp"));
  EXPECT_EQ(budget_.held, 0);
}

TEST_F(H2GuardTest, RapidResetsEndTheConnection) {
  Pass(Opening());
  const double begin = now_;
  std::string out;
  absl::Status status;
  int passed = 0;
  for (uint32_t id = 1; status.ok() && passed < 5000; id += 2, ++passed) {
    status = guard_.FromClient(OpenStream(id) + MakeFrame(kReset, 0, id, "abcd"), now_, &out).status();
    now_ += 0.001;
  }
  EXPECT_NEAR(passed, 1000 + 100 * (now_ - begin), 2);
  EXPECT_THAT(status.ToString(), HasSubstr("too many RST_STREAM frames: 1000 at once and 100 a second are allowed"));
}

TEST_F(H2GuardTest, ManyResetsAtOnceArePassedOnLittleByLittle) {
  std::string bytes = Opening();
  for (uint32_t id = 1; id < 1600; id += 2) bytes += OpenStream(id);
  for (uint32_t id = 1; id < 1600; id += 2) bytes += MakeFrame(kReset, 0, id, "abcd");
  Pass(bytes);
  EXPECT_EQ(guard_.streams(), 800U - 50);
  const double begin = now_;
  while (guard_.resume_at() >= 0) {
    const size_t before = guard_.streams();
    ASSERT_GT(guard_.resume_at(), now_);
    now_ = guard_.resume_at() + 0.005;
    EXPECT_TRUE(guard_.Tick(now_, &to_server_, &to_client_).ok());
    Pass("");
    EXPECT_LE(before - guard_.streams(), 10U);
  }
  EXPECT_EQ(guard_.streams(), 0U);
  EXPECT_EQ(partial_, "");
  EXPECT_NEAR(now_ - begin, 0.75, 0.01);
}

TEST_F(H2GuardTest, OtherFramesAreLimitedToo) {
  struct Flood {
    std::string frame;
    int allowed;
    std::string name;
  };
  for (const Flood& flood :
       {Flood{MakeFrame(kSettings, 0, 0, ""), 99, "SETTINGS"}, Flood{MakeFrame(kPing, 0, 0, "12345678"), 200, "PING"},
        Flood{MakeFrame(kPing, kAck, 0, "12345678"), 200, "PING"},
        Flood{MakeFrame(kPriority, 0, 1, "12345"), 1000, "PRIORITY"},
        Flood{MakeFrame(77, 0, 1, ""), 1000, "frame of type 77"}, Flood{MakeFrame(kData, 0, 1, ""), 1000, "DATA"},
        Flood{MakeFrame(kWindowUpdate, 0, 0, "1234"), 10000, "WINDOW_UPDATE"}}) {
    FakeBudget budget;
    std::string out;
    H2Guard guard(limits_, &budget, now_);
    ASSERT_TRUE(guard.FromClient(Opening() + OpenStream(1), now_, &out).ok());
    int passed = 0;
    absl::Status status;
    for (; passed < 20000; ++passed) {
      status = guard.FromClient(flood.frame, now_, &out).status();
      if (!status.ok()) break;
    }
    EXPECT_EQ(passed, flood.allowed) << flood.name;
    EXPECT_THAT(status.ToString(), HasSubstr(absl::StrCat("too many ", flood.name)));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST_F(H2GuardTest, AnswersAllowMoreWindowUpdates) {
  Pass(Opening() + OpenStream(1));
  for (int i = 0; i < 50000; ++i) {
    Answer(MakeFrame(kData, 0, 1, "token"));
    Pass(MakeFrame(kWindowUpdate, 0, 1, "1234") + MakeFrame(kWindowUpdate, 0, 0, "1234"));
  }
}

TEST_F(H2GuardTest, AnswersAllowPingsAndResets) {
  Pass(Opening());
  for (uint32_t id = 1; id < 10'000; id += 2) {
    Pass(OpenStream(id));
    Answer(MakeFrame(kHeaders, kEndHeaders, id, "x") + MakeFrame(kData, 0, id, "token"));
    Pass(MakeFrame(kPing, 0, 0, "12345678") + MakeFrame(kReset, 0, id, "abcd"));
  }
}

TEST_F(H2GuardTest, PingsOfTheServerMayBeAnswered) {
  Pass(Opening());
  for (int i = 0; i < 5000; ++i) {
    Answer(MakeFrame(kPing, 0, 0, "12345678"));
    Pass(MakeFrame(kPing, kAck, 0, "12345678"));
  }
}

TEST_F(H2GuardTest, StreamsAreBounded) {
  FrontLimits limits;
  limits.streams_max = 2;
  H2Guard guard(limits, &budget_, now_);
  std::string out;
  ASSERT_TRUE(guard.FromClient(Opening() + OpenStream(1) + OpenStream(3), now_, &out).ok());
  EXPECT_THAT(guard.FromClient(OpenStream(5), now_, &out).status().ToString(),
              HasSubstr("more than 2 streams are open"));
}

TEST_F(H2GuardTest, ACallThatIsOneTooManyIsRefusedAndTheOthersGoOn) {
  budget_.calls_max = 2;
  Pass(Opening() + OpenStream(1) + OpenStream(3));
  // gRPC gets the whole header block, which later ones refer to, and then a reset.
  const std::string headers = MakeFrame(kHeaders, 0, 5, "ab") + MakeFrame(kContinuation, kEndHeaders, 5, "c");
  std::string to_server;
  EXPECT_TRUE(guard_.FromClient(headers, now_, &to_server).ok());
  EXPECT_EQ(to_server, headers + MakeFrame(kReset, 0, 5, Number(kCancel, 4)));
  const std::vector<TestFrame> refusal = FramesOf(Answer(MakeFrame(kPing, kAck, 0, "12345678")));
  ASSERT_EQ(refusal.size(), 3U);
  EXPECT_EQ(refusal[0].stream, 5U);
  EXPECT_EQ(refusal[0].flags, kEndHeaders | kEndStream);
  EXPECT_THAT(refusal[0].payload, HasSubstr("there are enough calls"));
  EXPECT_EQ(refusal[1].type, kReset);
  // What the client sends of it meanwhile is not counted.
  Pass(Data(5, Prefix(10) + "12345", false));
  EXPECT_EQ(budget_.held, 0);
  EXPECT_EQ(guard_.streams(), 2U);
  EXPECT_EQ(guard_.streams_refused(), 1);
  // A call that ends, by whichever side, makes room for another.
  Answer(MakeFrame(kHeaders, kEndHeaders | kEndStream, 1, "x"));
  Pass(OpenStream(7) + MakeFrame(kReset, 0, 3, "abcd") + OpenStream(9));
  EXPECT_EQ(budget_.calls, 2);
}

TEST_F(H2GuardTest, CallsThatAreRefusedCostAsMuchAsResets) {
  budget_.calls_max = 0;
  Pass(Opening());
  uint32_t id = 1;
  std::string out;
  for (int i = 0; i < 1000; ++i, id += 2) ASSERT_TRUE(guard_.FromClient(OpenStream(id), now_, &out).ok());
  EXPECT_THAT(Refused(OpenStream(id)).ToString(), HasSubstr("too many calls beyond the limit: there are enough calls"));
}

TEST_F(H2GuardTest, AConnectionThatEndsGivesItsCallsBack) {
  {
    std::string out;
    H2Guard guard(limits_, &budget_, now_);
    ASSERT_TRUE(guard.FromClient(Opening() + OpenStream(1) + OpenStream(3), now_, &out).ok());
    EXPECT_EQ(budget_.calls, 2);
  }
  EXPECT_EQ(budget_.calls, 0);
}

TEST_F(H2GuardTest, UnfinishedBytesOfAConnectionAreBounded) {
  FrontLimits limits;
  limits.connection_bytes_max = 100'000;
  H2Guard guard(limits, &budget_, now_);
  std::string out;
  ASSERT_TRUE(guard.FromClient(Opening(), now_, &out).ok());
  // Each of them would be complete with one more byte.
  for (const uint32_t id : {1, 3, 5}) {
    ASSERT_TRUE(
        guard.FromClient(OpenStream(id) + Data(id, Prefix(30'001) + std::string(30'000, 'x'), false), now_, &out).ok());
  }
  EXPECT_EQ(guard.parked_bytes(), 3 * 30'005);
  EXPECT_THAT(guard.FromClient(OpenStream(7) + Data(7, Prefix(30'001) + std::string(30'000, 'x'), false), now_, &out)
                  .status()
                  .ToString(),
              HasSubstr("bytes of requests that are not complete, the limit is 100000"));
}

TEST_F(H2GuardTest, CompleteMessagesThatNobodyReadsCountUntilTheServerAnswers) {
  Pass(Opening() + OpenStream(1) + Data(1, Prefix(100) + std::string(100, 'x') + Prefix(0), false));
  EXPECT_EQ(guard_.parked_bytes(), 110);
  Answer(MakeFrame(kWindowUpdate, 0, 1, Number(100, 4)));
  EXPECT_EQ(guard_.parked_bytes(), 0);
  Pass(Data(1, Prefix(7), false));
  EXPECT_EQ(budget_.held, 5);
  Pass(Data(1, "1234567", true));
  EXPECT_EQ(budget_.held, 0);
}

TEST_F(H2GuardTest, ALongMessageWaitsForRoom) {
  budget_.most = 1'000'000;
  Pass(Opening() + OpenStream(1) + Data(1, Prefix(900'000), false));
  EXPECT_EQ(budget_.held, 900'005);
  Pass(OpenStream(3) + Data(3, Prefix(900'000) + std::string(10'000, 'x'), false));
  EXPECT_EQ(budget_.held, 910'010);
  // gRPC allows both to send; the second one does not hear of it.
  const std::string first = MakeFrame(kWindowUpdate, 0, 1, Number(900'000, 4));
  const std::string connection = MakeFrame(kWindowUpdate, 0, 0, Number(1'800'000, 4));
  EXPECT_EQ(Answer(first + MakeFrame(kWindowUpdate, 0, 3, Number(800'000, 4)) + connection), first + connection);
  EXPECT_EQ(Answer(MakeFrame(kWindowUpdate, 0, 3, Number(100'000, 4))), "");
  // A short message of another stream passes meanwhile.
  Pass(OpenStream(5) + Data(5, Prefix(10) + "0123456789", true));
  std::string to_client;
  guard_.Retry(now_, &to_client);
  EXPECT_EQ(to_client, "");
  Answer(MakeFrame(kReset, 0, 1, "abcd"));
  guard_.Retry(now_, &to_client);
  EXPECT_EQ(to_client, MakeFrame(kWindowUpdate, 0, 3, Number(900'000, 4)));
  EXPECT_EQ(budget_.held, 900'005);
}

TEST_F(H2GuardTest, FramesOfOurOwnWaitForTheEndOfTheServersFrame) {
  budget_.most = 100'000;
  Pass(Opening() + OpenStream(1) + OpenStream(3) + Data(3, Prefix(90'000), false));
  Pass(Data(1, Prefix(90'000), false));
  Answer(MakeFrame(kWindowUpdate, 0, 1, Number(90'000, 4)));
  EXPECT_EQ(Answer(FrameHeader(4, kData, 0, 3) + "ab").size(), 11U);
  EXPECT_EQ(guard_.GoAway(absl::InternalError("")), "");
  std::string to_client;
  Pass(MakeFrame(kReset, 0, 3, "abcd"));
  guard_.Retry(now_, &to_client);
  EXPECT_EQ(to_client, "");
  EXPECT_EQ(Answer("cd"), "cd" + MakeFrame(kWindowUpdate, 0, 1, Number(90'000, 4)));
}

TEST_F(H2GuardTest, AMessageWithoutProgressIsReset) {
  Pass(Opening() + OpenStream(1) + Data(1, Prefix(100'000) + "x", false) + OpenStream(3) + OpenStream(5) +
       Data(5, Prefix(1) + "x", false));
  Tick(29);
  EXPECT_EQ(to_client_, "");
  Pass(Data(1, std::string(16'384, 'x'), false));
  Tick(2);
  // The one that has not begun; that of stream 5 is complete.
  EXPECT_EQ(to_server_, MakeFrame(kReset, 0, 3, Number(kCancel, 4)));
  EXPECT_THAT(to_client_, HasSubstr("less than 16384 bytes of the message came in 30 s"));
  const std::vector<TestFrame> failure = FramesOf(to_client_);
  ASSERT_EQ(failure.size(), 2U);
  EXPECT_EQ(failure[0].type, kHeaders);
  EXPECT_EQ(failure[0].stream, 3U);
  EXPECT_EQ(failure[0].flags, kEndHeaders | kEndStream);
  EXPECT_EQ(failure[1].type, kReset);
  to_client_.clear();
  Answer(MakeFrame(kHeaders, kEndHeaders, 1, "x"));
  Pass(Data(1, "xx", false));
  Tick(31);
  EXPECT_EQ(to_client_, MakeFrame(kReset, 0, 1, Number(kEnhanceYourCalm, 4)));
  EXPECT_EQ(guard_.streams_expired(), 2);
  Tick(1000);
  EXPECT_EQ(guard_.streams(), 1U);
}

TEST_F(H2GuardTest, AMessageThatTheServerDoesNotReadMayTakeItsTime) {
  // The client has sent all that it may.
  Pass(Opening() + OpenStream(1) + Data(1, (Prefix(200'000) + std::string(200'000, 'x')).substr(0, 65'535), false));
  for (int i = 0; i < 10; ++i) Tick(20);
  EXPECT_EQ(to_client_, "");
  // Now the server reads, so the client must send, and has the whole time for it.
  Answer(MakeFrame(kWindowUpdate, 0, 0, Number(200'000, 4)) + MakeFrame(kWindowUpdate, 0, 1, Number(200'000, 4)));
  Tick(29);
  EXPECT_EQ(to_client_, "");
  Tick(2);
  EXPECT_THAT(to_client_, HasSubstr("less than 16384 bytes of the message came in 30 s"));
}

TEST_F(H2GuardTest, TheWindowOfTheConnectionHoldsMessagesUpToo) {
  Pass(Opening() + OpenStream(1) + Data(1, Prefix(40'000) + std::string(39'999, 'x'), false));
  Pass(OpenStream(3) + Data(3, (Prefix(40'000) + std::string(39'999, 'x')).substr(0, 65'535 - 40'004), false));
  for (int i = 0; i < 10; ++i) Tick(20);
  EXPECT_EQ(to_client_, "") << "neither may send a byte";
  Answer(MakeFrame(kWindowUpdate, 0, 0, Number(100'000, 4)));
  Tick(31);
  EXPECT_EQ(guard_.streams_expired(), 2);
}

TEST_F(H2GuardTest, AFrameThatHasBegunIsOwedWhateverTheWindow) {
  Pass(Opening() + OpenStream(1) + Data(1, (Prefix(200'000) + std::string(200'000, 'x')).substr(0, 49'152), false));
  Pass(FrameHeader(16'383, kData, 0, 1) + "x");
  Tick(31);
  now_ += 31;
  EXPECT_THAT(guard_.Tick(now_, &to_server_, &to_client_).ToString(),
              HasSubstr("a DATA frame that made no progress for 30 s"));
}

TEST_F(H2GuardTest, TimeInWhichTheServerIsFullDoesNotCount) {
  Pass(Opening() + OpenStream(1) + Data(1, Prefix(100'000) + "x", false) + FrameHeader(8, kPing, 0, 0));
  for (int i = 0; i < 10; ++i) {
    guard_.Excuse(20);
    Tick(20);
  }
  EXPECT_EQ(to_client_, "");
  Tick(9);
  now_ += 2;
  EXPECT_THAT(guard_.Tick(now_, &to_server_, &to_client_).ToString(), HasSubstr("that is not complete after 10 s"));
}

TEST_F(H2GuardTest, AMessageThatIsTooLongFailsAtOnce) {
  Pass(Opening());
  EXPECT_EQ(Answer(MakeFrame(kHeaders, 0, 7, "x")).size(), 10U);
  Pass(OpenStream(1) + FrameHeader(100, kData, 0, 1) + Prefix((16 << 20) + 1));
  EXPECT_EQ(budget_.held, 0);
  // The frames of our own wait for the ends of those of both sides.
  std::string to_server;
  EXPECT_TRUE(guard_.FromClient(std::string(95, 'x'), now_, &to_server).ok());
  EXPECT_EQ(to_server, std::string(95, 'x') + MakeFrame(kReset, 0, 1, Number(kCancel, 4)));
  EXPECT_THAT(Answer(MakeFrame(kContinuation, kEndHeaders, 7, "y")),
              HasSubstr("the message has 16777217 bytes, the limit is 16777216"));
}

TEST_F(H2GuardTest, AFrameThatIsNeverCompletedEndsTheConnection) {
  for (const std::string& bytes : {MakeFrame(kHeaders, 0, 1, "abc"), std::string(FrameHeader(8, kPing, 0, 0))}) {
    H2Guard guard(limits_, &budget_, now_);
    std::string out;
    ASSERT_TRUE(guard.FromClient(Opening() + bytes, now_, &out).ok());
    EXPECT_TRUE(guard.Tick(now_ + 9, &out, &out).ok());
    EXPECT_THAT(guard.Tick(now_ + 11, &out, &out).ToString(), HasSubstr("that is not complete after 10 s"));
  }
}

TEST_F(H2GuardTest, TheTimeOfAFrameBeginsWithIt) {
  Pass(Opening());
  for (int i = 0; i < 10; ++i) {
    Pass(MakeFrame(kPing, 0, 0, "12345678") + MakeFrame(kPing, 0, 0, "12345678").substr(0, 1));
    Tick(6);
    Pass(MakeFrame(kPing, 0, 0, "12345678").substr(1));
  }
}

}  // namespace
}  // namespace goldfinch
