#include "coordinator/grpc/worker_gate.h"

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

const SharedKey kKey(std::string(32, 'k'));
constexpr uint64_t kConnection = 7;
const std::string kProtocol = absl::StrCat(kClusterProtocol);

// A worker that answers a challenge.
struct Answer {
  explicit Answer(const std::string& challenge, const SharedKey& key = kKey)
      : challenge(challenge), proof(key.Prove(kWorkerRole, {kProtocol, nonce, challenge})) {}

  WorkerCredentials credentials() const { return {kProtocol, nonce, challenge, proof}; }

  std::string nonce = MakeNonce();
  std::string challenge;
  std::string proof;
};

TEST(WorkerGateTest, AProofLetsIn) {
  WorkerGate gate(kKey);
  const Answer worker(gate.MakeChallenge(kConnection, 1));
  const auto admitted = gate.Admit(worker.credentials(), kConnection, 2);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_TRUE(kKey.Accepts(*admitted, kCoordinatorRole, {kProtocol, worker.nonce, worker.challenge}));
  EXPECT_NE(*admitted, worker.proof);
}

TEST(WorkerGateTest, StrangersGetAChallengeAndNothingElse) {
  WorkerGate gate(kKey);
  EXPECT_EQ(gate.Admit({}, kConnection, 1).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(gate.Admit({kProtocol, "short", "", ""}, kConnection, 1).status().code(),
            absl::StatusCode::kUnauthenticated);
  const Answer made_up(std::string(gate.MakeChallenge(kConnection, 1).size(), 'x'));
  EXPECT_EQ(gate.Admit(made_up.credentials(), kConnection, 1).status().code(), absl::StatusCode::kUnauthenticated)
      << "a challenge must be the gate's own";
  WorkerGate other(kKey);
  EXPECT_EQ(gate.Admit(Answer(other.MakeChallenge(kConnection, 1)).credentials(), kConnection, 1).status().code(),
            absl::StatusCode::kUnauthenticated);
  EXPECT_NE(gate.MakeChallenge(kConnection, 1), gate.MakeChallenge(kConnection, 1));
}

TEST(WorkerGateTest, AnotherKeyIsRefused) {
  WorkerGate gate(kKey);
  const absl::Status status =
      gate.Admit(Answer(gate.MakeChallenge(kConnection, 1), SharedKey(std::string(32, 'x'))).credentials(), kConnection,
                 1)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cluster_key_file"));
  Answer none(gate.MakeChallenge(kConnection, 1));
  none.proof.clear();
  EXPECT_EQ(gate.Admit(none.credentials(), kConnection, 1).status().code(), absl::StatusCode::kPermissionDenied);
  // The coordinator's own proof is of another role.
  Answer reflected(gate.MakeChallenge(kConnection, 1));
  reflected.proof = kKey.Prove(kCoordinatorRole, {kProtocol, reflected.nonce, reflected.challenge});
  EXPECT_EQ(gate.Admit(reflected.credentials(), kConnection, 1).status().code(), absl::StatusCode::kPermissionDenied);
}

TEST(WorkerGateTest, AChallengeIsGoodOnceAndForAWhile) {
  WorkerGate gate(kKey);
  const Answer worker(gate.MakeChallenge(kConnection, 1));
  ASSERT_TRUE(gate.Admit(worker.credentials(), kConnection, 1).ok());
  EXPECT_EQ(gate.Admit(worker.credentials(), kConnection, 1).status().code(), absl::StatusCode::kUnauthenticated)
      << "a replay";
  const Answer late(gate.MakeChallenge(kConnection, 1));
  EXPECT_EQ(gate.Admit(late.credentials(), kConnection, 1.1 + WorkerGate::kChallengeSeconds).status().code(),
            absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(gate.Admit(Answer(gate.MakeChallenge(kConnection, 20)).credentials(), kConnection, 21).ok());
}

TEST(WorkerGateTest, AChallengeIsGoodOnItsOwnConnectionAlone) {
  WorkerGate gate(kKey);
  const Answer worker(gate.MakeChallenge(kConnection, 1));
  for (const uint64_t other : {uint64_t{0}, kConnection - 1, kConnection + 1, 10 * kConnection}) {
    EXPECT_EQ(gate.Admit(worker.credentials(), other, 1).status().code(), absl::StatusCode::kUnauthenticated) << other;
  }
  EXPECT_TRUE(gate.Admit(worker.credentials(), kConnection, 1).ok()) << "trying it elsewhere has not used it up";
}

TEST(WorkerGateTest, AnotherVersionIsNamed) {
  WorkerGate gate(kKey);
  Answer worker(gate.MakeChallenge(kConnection, 1));
  WorkerCredentials credentials = worker.credentials();
  credentials.protocol = "2\x1b";
  const absl::Status status = gate.Admit(credentials, kConnection, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 2\\x1b of the protocol"));
}

}  // namespace
}  // namespace goldfinch
