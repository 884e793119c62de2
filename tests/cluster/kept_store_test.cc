// What is kept of texts in a store: it is there after a restart and after a loss of workers, whatever the split, and
// gives the same tokens.
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/coordinator.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/store/memory_files.h"
#include "coordinator/store/store.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "tests/cluster/local_cluster.h"

namespace goldfinch {
namespace {

constexpr char kDemoModel[] = "tests/demo_model/model.pth";

std::vector<int32_t> Text(int64_t tokens, const std::string& end = "") {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>(98 + (i * i + i / 7) % 23));
  for (const char c : end) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

std::shared_ptr<SegmentStore> OpenStore(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<SegmentStore>> store =
      SegmentStore::Open({.folder = folder, .bytes_max = int64_t{1} << 30});
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

std::string EmptyFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  return folder;
}

std::function<void(CoordinatorOptions*)> With(std::shared_ptr<SegmentStore> store) {
  return [store = std::move(store)](CoordinatorOptions* options) {
    options->store = store;
    options->store_tier.bytes_max = int64_t{1} << 30;
    options->store_tier.rate = TransferRate(1e12, 1e-9);  // it is always worth it
    options->snapshots = {.first_tokens = 512, .cost_tokens = 1};
    options->membership.regroup_wait_seconds = 0.1;
  };
}

void Await(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!done()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST(KeptStoreTest, TextsAndNamesAreThereAfterARestart) {
  const std::string folder = EmptyFolder("kept");
  std::vector<int32_t> cold, cold_named;
  {
    const std::shared_ptr<SegmentStore> store = OpenStore(folder);
    LocalCluster cluster(kDemoModel, 3, With(store));
    cluster.AwaitReady();
    const auto first = cluster.Generate(Text(1500), 1);
    ASSERT_TRUE(first->Wait().ok());
    const auto named = cluster.Generate(Text(700, "And Moses"), 4, [](Request* request) {
      request->keep_as = Request::KeepAs{.name = "the book"};
      request->generate->sampling.temperature = 0;
    });
    ASSERT_TRUE(named->Wait().ok()) << named->Wait();
    const auto refuse = [](Request* request) {
      request->cache = false;
      request->generate->sampling.temperature = 0;
    };
    const auto alone = cluster.Generate(Text(1500, " said"), 8, refuse);
    ASSERT_TRUE(alone->Wait().ok());
    cold = alone->tokens();
    std::vector<int32_t> text = Text(700, "And Moses");
    text.insert(text.end(), named->tokens().begin(), named->tokens().end());
    text.push_back(66);
    const auto over = cluster.Generate(text, 8, refuse);
    ASSERT_TRUE(over->Wait().ok());
    cold_named = over->tokens();
    Await([&] { return store->Names().size() == 1 && cluster.Metric("context_moves_total") >= 4; });
  }
  LocalCluster cluster(kDemoModel, 2, With(OpenStore(folder)));
  cluster.AwaitReady();
  const auto greedy = [](Request* request) { request->generate->sampling.temperature = 0; };
  const auto warm = cluster.Generate(Text(1500, " said"), 8, greedy);
  ASSERT_TRUE(warm->Wait().ok());
  EXPECT_EQ(warm->usage().cached_tokens, 1500);
  EXPECT_EQ(warm->tokens(), cold);
  const auto over = cluster.Generate({66}, 8, [&](Request* request) {
    request->context = "the book";
    greedy(request);
  });
  ASSERT_TRUE(over->Wait().ok()) << over->Wait();
  EXPECT_EQ(over->usage().cached_tokens, 700 + 9 + 4);
  EXPECT_EQ(over->tokens(), cold_named);
  cluster.ExpectNothingHeld();
}

TEST(KeptStoreTest, ALostWorkerCostsAReload) {
  MemoryFiles files;
  absl::StatusOr<std::unique_ptr<SegmentStore>> opened =
      SegmentStore::Open({.folder = "memory", .bytes_max = int64_t{1} << 28, .files = &files});
  ASSERT_TRUE(opened.ok());
  const std::shared_ptr<SegmentStore> store = *std::move(opened);
  LocalCluster cluster(kDemoModel, 2, [&](CoordinatorOptions* options) {
    With(store)(options);
    options->store_tier.durable = false;
    options->store_tier.protect_tokens = 600;
  });
  cluster.AwaitReady();
  const std::vector<int32_t> prompt = Text(3000);
  const auto sampled = [](Request* request) {
    request->generate->sampling.temperature = 1;
    request->generate->sampling.seed = 5;
    request->generate->sampling.banned_tokens = {0};
  };
  const auto request = cluster.Generate(prompt, 800, sampled);
  request->AwaitTokens(1);
  Await([&] { return store->totals().segments >= 5; });  // 512, 1024, 1536, 2304 and the end
  cluster.AwaitMetric("context_moves_total", 5);
  EXPECT_GT(cluster.Metric("protected_bytes"), 0);
  cluster.workers().Kill(1);
  const auto generated = static_cast<int64_t>(request->token_count());
  ASSERT_TRUE(request->Wait().ok()) << request->Wait();
  EXPECT_EQ(request->usage().recoveries, 1);
  EXPECT_LE(request->usage().reread_tokens, generated + 8) << "what it had generated, and some Steps more";
  const auto alone = cluster.Generate(prompt, 800, [&](Request* request) {
    sampled(request);
    request->cache = false;
  });
  ASSERT_TRUE(alone->Wait().ok());
  EXPECT_EQ(request->tokens(), alone->tokens());
  cluster.ExpectNothingHeld();
}

// The folder is taken away in the middle of it all: nothing fails, and nothing is kept.
TEST(KeptStoreTest, AStoreThatFailsFailsNoRequest) {
  const std::string folder = EmptyFolder("failing");
  LocalCluster cluster(kDemoModel, 2, With(OpenStore(folder)));
  cluster.AwaitReady();
  std::filesystem::remove_all(folder);
  for (int i = 0; i < 4; ++i) {
    const auto request = cluster.Generate(Text(600, std::string(1, static_cast<char>('a' + i))), 2);
    ASSERT_TRUE(request->Wait().ok()) << request->Wait();
  }
  Await([&] { return cluster.Metric("context_move_failures_total") > 0; });
  cluster.ExpectNothingHeld();
}

// A worker that registers and hears what it gets.
class Listening : public WorkerLink {
 public:
  void Send(const cluster::v1::ToWorker& message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (message.has_welcome()) token_ = message.welcome().contexts_token();
  }
  void Close() override {}
  std::optional<std::string> token() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return token_;
  }

 private:
  std::mutex mutex_;
  std::optional<std::string> token_;
};

TEST(KeptStoreTest, WithoutAStoreWorkersOpenNoStreamForIt) {
  for (const bool has_store : {false, true}) {
    MemoryFiles files;
    CoordinatorOptions options;
    options.vocab = "bytes";
    options.membership.model = kDemoModel;
    if (has_store) {
      auto store = SegmentStore::Open({.folder = "memory", .bytes_max = int64_t{1} << 28, .files = &files});
      ASSERT_TRUE(store.ok());
      options.store = *std::move(store);
    }
    Metrics metrics("test");
    Coordinator coordinator(options, &metrics);
    const auto link = std::make_shared<Listening>();
    const uint64_t worker = coordinator.Connected(link, "here");
    cluster::v1::FromWorker message;
    message.mutable_register_()->set_protocol(kClusterProtocol);
    message.mutable_register_()->set_name("w");
    message.mutable_register_()->set_memory_bytes(int64_t{1} << 30);
    message.mutable_register_()->set_flops(1e9);
    message.mutable_register_()->set_read_bytes_per_second(1e9);
    message.mutable_register_()->set_transport("local");
    message.mutable_register_()->set_shelf_bytes(1 << 20);
    coordinator.Received(worker, std::move(message));
    Await([&] { return link->token().has_value(); });
    EXPECT_EQ(link->token()->empty(), !has_store);
    coordinator.Disconnected(worker);
  }
}

}  // namespace
}  // namespace goldfinch
