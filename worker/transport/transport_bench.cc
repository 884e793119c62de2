// Measures how fast a stage sends rows to the next: bytes and messages per second.
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "benchmark/benchmark.h"
#include "kernels/backend.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using MakeFactory = std::function<std::unique_ptr<TransportFactory>()>;

void SendAndReceive(benchmark::State& state, const MakeFactory& make) {
  const int64_t bytes = state.range(0);
  const std::unique_ptr<TransportFactory> factories[] = {make(), make()};
  const std::unique_ptr<Backend> backends[] = {MakeCpuBackend(1), MakeCpuBackend(1)};
  const auto sender_setup = *factories[0]->Setup("a key", 0, {{}, {bytes, 0}}, *backends[0]);
  const auto receiver_setup = *factories[1]->Setup("a key", 1, {{0, bytes}, {}}, *backends[1]);
  std::unique_ptr<Transport> receiver;
  std::thread connect([&] { receiver = *receiver_setup->Connect({sender_setup->addresses()[1], ""}, 10); });
  const std::unique_ptr<Transport> sender = *sender_setup->Connect({"", receiver_setup->addresses()[0]}, 10);
  connect.join();

  std::thread receive([&] {
    std::vector<char> rows(bytes);
    while (receiver->Recv(0, {rows.data(), DType::kU16, {bytes / 2}}).ok()) {
    }
  });
  const std::vector<char> rows(bytes, 'x');
  for ([[maybe_unused]] auto _ : state) {
    GF_CHECK(sender->Send(1, {rows.data(), DType::kU16, {bytes / 2}}).ok());
  }
  state.SetBytesProcessed(state.iterations() * bytes);
  receiver->Abort();
  receive.join();
}

void Local(benchmark::State& state) { SendAndReceive(state, MakeLocalTransportFactory); }
void Tcp(benchmark::State& state) {
  SendAndReceive(state, [] { return *MakeTcpTransportFactory("127.0.0.1", 10); });
}
BENCHMARK(Local)->Arg(8 << 10)->Arg(4 << 20)->UseRealTime();
BENCHMARK(Tcp)->Arg(8 << 10)->Arg(4 << 20)->UseRealTime();

}  // namespace
}  // namespace goldfinch

BENCHMARK_MAIN();
