// rpc Contexts of the cluster service.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/grpc/cluster_service.h"
#include "coordinator/grpc/server.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/shelves/shelf_link.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "gtest/gtest.h"
#include "protos/cluster.grpc.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using cluster::v1::Cluster;
using cluster::v1::FromShelf;
using cluster::v1::FromWorker;
using cluster::v1::ToShelf;
using cluster::v1::ToWorker;
using testing::HasSubstr;

// Worker i has the token "token i", from 1 on, and keeps what it hears.
class Shelves : public WorkerListener, public ShelfListener {
 public:
  struct Stream {
    uint64_t worker = 0;
    std::shared_ptr<ShelfLink> link;
    std::vector<FromShelf> received;
    int64_t written = 0;
    int closed = 0;
  };

  uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string&) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    links_.push_back(std::move(link));
    changed_.notify_all();
    return links_.size();
  }
  void Received(uint64_t, FromWorker) override {}
  void Disconnected(uint64_t) override {}
  ShelfListener* shelves() override { return keeps_ ? this : nullptr; }

  std::optional<uint64_t> WorkerOf(const std::string& token) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 1; i <= links_.size(); ++i) {
      if (token == absl::StrCat("token ", i)) return i;
    }
    return std::nullopt;
  }
  bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gone_) return false;
    streams_.push_back({worker, std::move(link), {}});
    changed_.notify_all();
    return true;
  }
  void Received(const ShelfLink* link, FromShelf message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(Of(link).closed, 0);
    Of(link).received.push_back(std::move(message));
    changed_.notify_all();
  }
  void Written(const ShelfLink* link, int64_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Of(link).written += bytes;
    changed_.notify_all();
  }
  void Closed(const ShelfLink* link) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++Of(link).closed;
    changed_.notify_all();
  }

  Stream Wait(size_t stream, const std::function<bool(const Stream&)>& condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return streams_.size() > stream && condition(streams_[stream]); });
    return streams_[stream];
  }
  std::shared_ptr<WorkerLink> WaitWorker(size_t worker) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return links_.size() >= worker; });
    return links_[worker - 1];
  }
  size_t streams() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return streams_.size();
  }
  void SetGone(bool gone) {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = gone;
  }
  void KeepNothing() { keeps_ = false; }

 private:
  Stream& Of(const ShelfLink* link) {
    for (Stream& stream : streams_) {
      if (stream.link.get() == link) return stream;
    }
    ADD_FAILURE() << "a stream that was not opened";
    return streams_.emplace_back();
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<std::shared_ptr<WorkerLink>> links_;
  std::vector<Stream> streams_;
  bool gone_ = false;
  bool keeps_ = true;
};

FromShelf Token(const std::string& token) {
  FromShelf message;
  message.set_token(token);
  return message;
}

FromShelf Done(uint64_t number) {
  FromShelf message;
  message.mutable_fetch_done()->set_number(number);
  return message;
}

class ClusterContextsTest : public testing::Test {
 protected:
  using Stream = grpc::ClientReaderWriter<FromShelf, ToShelf>;

  ClusterContextsTest() : server_(*Server::Start({}, {MakeClusterService(&shelves_, {})})), stub_(Connect()) {}

  // Over a connection of its own.
  std::unique_ptr<Cluster::Stub> Connect() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return Cluster::NewStub(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                      grpc::InsecureChannelCredentials(), arguments));
  }

  // How a stream ends whose client says these things.
  static grpc::Status EndOf(Cluster::Stub* stub, const std::vector<FromShelf>& messages) {
    grpc::ClientContext context;
    const std::unique_ptr<Stream> stream = stub->Contexts(&context);
    for (const FromShelf& message : messages) stream->Write(message);
    ToShelf message;
    while (stream->Read(&message)) continue;
    return stream->Finish();
  }

  Shelves shelves_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Cluster::Stub> stub_;
};

TEST_F(ClusterContextsTest, MessagesKeepTheirOrderBothWays) {
  grpc::ClientContext work_context, context;
  const auto work = stub_->Work(&work_context);
  shelves_.WaitWorker(1);
  const std::unique_ptr<Stream> stream = stub_->Contexts(&context);
  ASSERT_TRUE(stream->Write(Token("token 1")));
  const Shelves::Stream opened = shelves_.Wait(0, [](const auto&) { return true; });
  EXPECT_EQ(opened.worker, 1u);
  constexpr uint64_t kMessages = 300;
  int64_t bytes = 0;
  for (uint64_t i = 0; i < kMessages; ++i) {
    ToShelf message;
    message.mutable_fetch()->set_number(i);
    bytes += static_cast<int64_t>(message.ByteSizeLong());
    opened.link->Send(message);
    ASSERT_TRUE(stream->Write(Done(i)));
    shelves_.Wait(0, [i](const auto& one) { return one.received.size() == i + 1; });
    opened.link->Handled();
  }
  for (uint64_t i = 0; i < kMessages; ++i) {
    ToShelf message;
    ASSERT_TRUE(stream->Read(&message));
    EXPECT_EQ(message.fetch().number(), i);
  }
  const Shelves::Stream all = shelves_.Wait(0, [bytes](const auto& one) { return one.written == bytes; });
  for (uint64_t i = 0; i < kMessages; ++i) EXPECT_EQ(all.received[i].fetch_done().number(), i);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(shelves_.Wait(0, [](const auto& one) { return one.closed > 0; }).closed, 1);
  opened.link->Send({});  // a link that outlives its stream does nothing
  opened.link->Close();

  grpc::ClientContext again_context;
  const std::unique_ptr<Stream> again = stub_->Contexts(&again_context);
  ASSERT_TRUE(again->Write(Token("token 1")));
  const auto link = shelves_.Wait(1, [](const auto&) { return true; }).link;
  link->Close();
  ToShelf message;
  EXPECT_FALSE(again->Read(&message));
  EXPECT_EQ(again->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(shelves_.Wait(1, [](const auto& one) { return one.closed > 0; }).closed, 1);
  work_context.TryCancel();
  work->Finish();
}

TEST_F(ClusterContextsTest, StrangersAreNotHeard) {
  // Who has no Work stream is refused before anything is read.
  EXPECT_EQ(EndOf(stub_.get(), {Token("token 1")}).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  grpc::ClientContext work_context, other_context;
  const auto work = stub_->Work(&work_context);
  shelves_.WaitWorker(1);
  const std::unique_ptr<Cluster::Stub> other = Connect();
  EXPECT_EQ(EndOf(other.get(), {Token("token 1")}).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  const auto other_work = other->Work(&other_context);
  shelves_.WaitWorker(2);
  // A token of another connection, of nobody, and of a worker that is gone.
  for (const std::string token : {"token 1", "token 3", "t"}) {
    grpc::Status status;
    do {  // until the server has forgotten the streams before it
      status = EndOf(other.get(), {Token(token), Done(1)});
    } while (status.error_message().find("at most two") != std::string::npos);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(status.error_message(), HasSubstr("no worker of this connection has such a token"));
  }
  shelves_.SetGone(true);
  EXPECT_EQ(EndOf(stub_.get(), {Token("token 1")}).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  shelves_.SetGone(false);
  EXPECT_EQ(shelves_.streams(), 0u);
  // So many streams for a worker.
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<Stream>> streams;
  while (shelves_.streams() < 2) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->Contexts(contexts.back().get()));
    const size_t before = shelves_.streams();
    streams.back()->Write(Token("token 1"));
    // One that was refused, since the stream before it was not forgotten, has ended by then.
    for (int i = 0; i < 200 && shelves_.streams() == before; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  const grpc::Status status = EndOf(stub_.get(), {Token("token 1")});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), HasSubstr("at most two"));
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& stream : streams) stream->Finish();
  work_context.TryCancel();
  work->Finish();
  other_context.TryCancel();
  other_work->Finish();
}

TEST_F(ClusterContextsTest, MessagesAreChecked) {
  grpc::ClientContext work_context;
  const auto work = stub_->Work(&work_context);
  shelves_.WaitWorker(1);
  const auto piece = [](size_t bytes, uint32_t layer) {
    FromShelf message;
    message.mutable_piece()->set_data(std::string(bytes, 'x'));
    message.mutable_piece()->mutable_part()->set_layer(layer);
    return message;
  };
  const std::vector<std::pair<std::string, std::vector<FromShelf>>> cases = {
      {"the first message must have the token", {Done(1)}},
      {"the first message must have the token", {Token("token 1"), Token("token 1")}},
      {"the size of token is 65", {Token(std::string(65, 't'))}},
      {"an empty or unknown message", {Token("token 1"), FromShelf()}},
      {"piece.part.layer is 1024", {Token("token 1"), piece(1, 1024)}},
      {"piece.data has 1048577 bytes", {Token("token 1"), piece(kPieceBytesMax + 1, 0)}},
      {"the limit is 1064960", {Token("token 1"), piece(2 * kPieceBytesMax, 0)}},
      {"the limit is 1064960", {Token(std::string(2 * kPieceBytesMax, 't'))}},
  };
  size_t opened = 0;
  for (const auto& [named, messages] : cases) {
    const grpc::Status status = EndOf(stub_.get(), messages);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(named));
    if (messages.size() == 1) continue;
    const Shelves::Stream stream = shelves_.Wait(opened++, [](const auto& one) { return one.closed > 0; });
    EXPECT_TRUE(stream.received.empty()) << named;
    EXPECT_EQ(stream.closed, 1);
  }
  EXPECT_EQ(shelves_.streams(), opened);
  work_context.TryCancel();
  work->Finish();
}

TEST_F(ClusterContextsTest, AWorkerSendsOnlySoManyPiecesAhead) {
  grpc::ClientContext work_context, context;
  const auto work = stub_->Work(&work_context);
  shelves_.WaitWorker(1);
  const std::unique_ptr<Stream> stream = stub_->Contexts(&context);
  ASSERT_TRUE(stream->Write(Token("token 1")));
  const auto link = shelves_.Wait(0, [](const auto&) { return true; }).link;
  std::thread sender([&] {
    FromShelf message;
    message.mutable_piece()->set_data(std::string(kPieceBytesMax, 'x'));
    for (int i = 0; i < 20 && stream->Write(message); ++i) continue;
  });
  shelves_.Wait(0, [](const auto& one) { return one.received.size() == 2; });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(shelves_.Wait(0, [](const auto&) { return true; }).received.size(), 2u);
  for (size_t i = 0; i < 18; ++i) {
    link->Handled();
    shelves_.Wait(0, [i](const auto& one) { return one.received.size() == i + 3; });
  }
  sender.join();
  // One that is held up is ended all the same.
  server_->Shutdown(0);
  EXPECT_EQ(shelves_.Wait(0, [](const auto& one) { return one.closed > 0; }).closed, 1);
  stream->Finish();
  work->Finish();
}

TEST_F(ClusterContextsTest, ACoordinatorWithoutContexts) {
  shelves_.KeepNothing();
  EXPECT_EQ(EndOf(stub_.get(), {Token("token 1")}).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace goldfinch
