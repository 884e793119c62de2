// The tests of all transports on CUDA devices: with stages on one GPU, on several GPUs of one process, and by NCCL with
// a GPU each. Tests that need more GPUs than there are are skipped.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/transport/transport.h"
#include "worker/transport/transport_cases.h"

namespace goldfinch {
namespace {

// Returns how many GPUs can be opened. `why` gets the reason why there are no more.
int Gpus(std::string* why) {
  int count = 0;
  for (;; ++count) {
    const auto backend = MakeCudaBackend({.device = count});
    if (backend.ok()) continue;
    *why = std::string(backend.status().message());
    return count;
  }
}

std::unique_ptr<TransportFactory> Local(double /*timeout_seconds*/) { return MakeLocalTransportFactory(); }
std::unique_ptr<TransportFactory> Tcp(double timeout_seconds) {
  return *MakeTcpTransportFactory("127.0.0.1", timeout_seconds);
}
std::unique_ptr<TransportFactory> Nccl(double timeout_seconds) { return *MakeNcclTransportFactory(timeout_seconds); }

std::vector<TransportKind> Kinds() {
  std::string why;
  const int gpus = Gpus(&why);
  const auto one = [](int) { return *MakeCudaBackend({}); };
  const auto each = [gpus](int stage) { return *MakeCudaBackend({.device = stage % gpus}); };
  std::vector<TransportKind> kinds;
  if (gpus >= 1) {
    kinds.push_back(
        {.name = "local_one_gpu", .make = Local, .open_device = one, .tells_sizes = true, .leaves_threads = true});
    kinds.push_back(
        {.name = "tcp_one_gpu", .make = Tcp, .open_device = one, .tells_sizes = true, .leaves_threads = true});
  }
  if (gpus >= 2) {
    kinds.push_back(
        {.name = "local_gpus", .make = Local, .open_device = each, .tells_sizes = true, .leaves_threads = true});
  }
  if (gpus >= 2 && MakeNcclTransportFactory(60).ok()) {
    kinds.push_back({.name = "nccl",
                     .make = Nccl,
                     .open_device = each,
                     .stages_max = std::min(gpus, 4),
                     .rounds = 3,
                     .minds_sizes = false,
                     .tells_losses = false,
                     .late = true,
                     .leaves_threads = true});
  }
  return kinds;
}

TEST(TransportDeviceTest, OneGpu) {
  std::string why;
  if (Gpus(&why) < 1) GTEST_SKIP() << "no test of transports on a device: " << why;
}

TEST(TransportDeviceTest, NcclBetweenGpus) {
  std::string why;
  if (const int gpus = Gpus(&why); gpus < 2) {
    GTEST_SKIP() << "no test of NCCL, which wants two GPUs: there are " << gpus << " (" << why << ")";
  }
  if (const auto nccl = MakeNcclTransportFactory(60); !nccl.ok()) {
    GTEST_SKIP() << "no test of NCCL: " << nccl.status().message();
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportTest);
INSTANTIATE_TEST_SUITE_P(Devices, TransportTest, testing::ValuesIn(Kinds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace goldfinch
