// What a worker reports about itself and its model, and what it does when its stream to the coordinator breaks.
#include <limits>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using ::testing::HasSubstr;

TEST_P(WorkerTest, DescribesTheModel) {
  TestWorker worker = Start();
  const cluster::v1::Described described = Welcome(worker);
  EXPECT_EQ(described.error(), "");
  EXPECT_EQ(described.layers_size(), 4);
  EXPECT_EQ(described.fingerprint().size(), 16u);

  ToWorker message = WelcomeMessage();
  const auto error = [&] {
    worker->Received(message);
    return worker.mailbox->Await(FromWorker::kDescribed).described().error();
  };
  message.mutable_welcome()->set_model(path + ".missing");
  EXPECT_THAT(error(), HasSubstr(path + ".missing"));
  message = WelcomeMessage();
  message.mutable_welcome()->set_verify("some");
  EXPECT_THAT(error(), HasSubstr("\"some\""));
  message = WelcomeMessage();
  message.mutable_welcome()->set_cache_dtype("f64");
  EXPECT_THAT(error(), HasSubstr("\"f64\""));
  for (const double seconds : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), 1e9}) {
    message = WelcomeMessage();
    message.mutable_welcome()->set_heartbeat_timeout_seconds(seconds);
    EXPECT_THAT(error(), HasSubstr("heartbeat_timeout_seconds is "));
    EXPECT_FALSE(worker->silent());
  }
  message = WelcomeMessage();
  message.mutable_welcome()->set_cache_dtype("int8");
  EXPECT_EQ(error(), "");
  message = WelcomeMessage();
  EXPECT_EQ(error(), "");

  TestWorker own = Start({.model = path});
  message.mutable_welcome()->set_model("elsewhere");
  own->Received(message);
  EXPECT_EQ(own.mailbox->Await(FromWorker::kDescribed).described().fingerprint(), described.fingerprint());
}

// The model is open already when int8 is asked for the second time.
TEST_P(WorkerTest, KeysAndValuesAreNotKeptIn8Bits) {
  UseModel({.layers = {"finch_c2", "gptalpha"}});
  TestWorker worker = Start();
  ToWorker message = WelcomeMessage();
  for (const std::string dtype : {"int8", "bf16", "int8"}) {
    message.mutable_welcome()->set_cache_dtype(dtype);
    worker->Received(message);
    const std::string error = worker.mailbox->Await(FromWorker::kDescribed).described().error();
    if (dtype == "bf16") {
      EXPECT_EQ(error, "");
    } else {
      EXPECT_THAT(error, HasSubstr("layer 1 (gptalpha) keeps keys and values"));
    }
  }
}

TEST_P(WorkerTest, StreamsBreakAndComeBack) {
  StartAll(2);
  Form({0, 1});
  workers[0]->Disconnected();
  EXPECT_FALSE(workers[0]->in_group());
  EXPECT_FALSE(workers[0]->silent());
  const auto mailbox = std::make_shared<Mailbox>();
  workers[0].mailbox = mailbox;
  workers[0]->Connected([mailbox](const FromWorker& message) { mailbox->Put(message); });
  EXPECT_EQ(mailbox->Await(FromWorker::kRegister).register_().protocol(), kClusterProtocol);
  EndGeneration();
  Welcome(workers[0]);
  Form({0, 1});
  EXPECT_EQ(RunStep(OpenStep(1)).id(), 1u);
  workers[0]->Leave();
  EXPECT_TRUE(mailbox->Await(FromWorker::kLeaving).leaving());
}

TEST_P(WorkerTest, SilenceAndRefusal) {
  TestWorker worker = Start();
  EXPECT_FALSE(worker->silent()) << "no timeout has been agreed on";
  ToWorker message = WelcomeMessage();
  message.mutable_welcome()->set_heartbeat_timeout_seconds(1000);
  worker->Received(message);
  EXPECT_FALSE(worker->silent());
  message.mutable_welcome()->set_heartbeat_timeout_seconds(1e-9);
  worker->Received(message);
  EXPECT_TRUE(worker->silent());
  EXPECT_TRUE(worker->refused().ok());
  message.set_refused("another\x1b model");
  worker->Received(message);
  EXPECT_EQ(worker->refused().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(worker->refused().message()), "another\\x1b model") << "safe to print";
  message.set_refused(std::string(1 << 20, 'x'));
  worker->Received(message);
  EXPECT_EQ(worker->refused().message().size(), size_t{4096});
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
