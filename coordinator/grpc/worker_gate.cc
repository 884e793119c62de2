#include "coordinator/grpc/worker_gate.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

constexpr std::string_view kSealRole = "challenge";
constexpr size_t kEndBytes = sizeof(double);
constexpr size_t kChallengeBytes = SharedKey::kNonceBytes + kEndBytes + SharedKey::kProofBytes;

// When the challenge expires.
double EndOf(std::string_view challenge) {
  double end = 0;
  std::memcpy(&end, challenge.data() + SharedKey::kNonceBytes, kEndBytes);
  return end;
}

}  // namespace

WorkerGate::WorkerGate(SharedKey key) : key_(std::move(key)), seal_(MakeNonce()) {}

std::string WorkerGate::MakeChallenge(uint64_t connection, double now) const {
  std::string challenge = MakeNonce();
  const double end = now + kChallengeSeconds;
  challenge.append(reinterpret_cast<const char*>(&end), kEndBytes);
  challenge += seal_.Prove(kSealRole, {challenge, absl::StrCat(connection)});
  return challenge;
}

bool WorkerGate::IsOurs(std::string_view challenge, uint64_t connection, double now) const {
  if (challenge.size() != kChallengeBytes) return false;
  const std::string_view sealed = challenge.substr(0, SharedKey::kNonceBytes + kEndBytes);
  return seal_.Accepts(challenge.substr(sealed.size()), kSealRole, {sealed, absl::StrCat(connection)}) &&
         now <= EndOf(challenge);
}

absl::StatusOr<std::string> WorkerGate::Admit(const WorkerCredentials& worker, uint64_t connection, double now) {
  const std::string protocol = absl::StrCat(kClusterProtocol);
  if (!worker.protocol.empty() && worker.protocol != protocol) {
    return absl::FailedPreconditionError(absl::StrCat("it speaks version ", SafeText(worker.protocol, 32),
                                                      " of the protocol, the coordinator version ", protocol));
  }
  if (worker.nonce.size() != SharedKey::kNonceBytes || !IsOurs(worker.challenge, connection, now)) {
    return absl::UnauthenticatedError("the coordinator asks for the key of the cluster (cluster_key_file)");
  }
  if (!key_.Accepts(worker.proof, kWorkerRole, {protocol, worker.nonce, worker.challenge})) {
    return absl::PermissionDeniedError(
        "the worker's key is not that of the cluster: the files that cluster_key_file names differ");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  // Others may have come here with a later time, and forgotten challenges that were over by then.
  latest_ = std::max(latest_, now);
  if (EndOf(worker.challenge) < latest_) return absl::UnauthenticatedError("the challenge has expired");
  used_.erase(used_.begin(), used_.lower_bound({latest_, ""}));
  if (!used_.emplace(EndOf(worker.challenge), worker.challenge).second) {
    return absl::UnauthenticatedError("the challenge has been used before");
  }
  return key_.Prove(kCoordinatorRole, {protocol, worker.nonce, worker.challenge});
}

}  // namespace goldfinch
