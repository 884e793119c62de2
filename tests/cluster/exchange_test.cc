// A context as a file: exported from one server and imported in another one with other stages, it gives the logits of
// a request that reads everything, bit for bit.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/context_transfers.h"
#include "coordinator/scheduler/client.h"
#include "coordinator/store/memory_files.h"
#include "coordinator/store/store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;
using Ids = std::vector<int32_t>;

template <typename T>
absl::StatusOr<T> Await(const std::function<void(ContextDirectory::Answer<T>)>& ask) {
  std::promise<absl::StatusOr<T>> promise;
  ask([&](absl::StatusOr<T> answer) { promise.set_value(std::move(answer)); });
  return promise.get_future().get();
}

// A server with a store of its own.
class Server {
 public:
  // In memory if the folder is empty.
  Server(const std::string& model, int stages, const std::string& folder, int64_t store_bytes = int64_t{1} << 28)
      : store_(OpenStore(folder, store_bytes)),
        cluster_(model, stages,
                 [&](CoordinatorOptions* options) {
                   options->store = store_;
                   options->store_tier.durable = !folder.empty();
                   options->store_tier.bytes_max = store_bytes;
                   options->store_tier.rate = TransferRate(1e12, 1e-9);  // it is always worth it
                   options->snapshots.cost_tokens = 1;
                 }),
        transfers_(&cluster_.coordinator()) {
    cluster_.AwaitReady();
  }

  LocalCluster& cluster() { return cluster_; }
  SegmentStore& store() { return *store_; }

  absl::StatusOr<std::string> Export(const std::string& name) {
    const auto file = Await<std::shared_ptr<ContextTransfers::File>>([&](auto answer) {
      transfers_.OpenFile(client_, {.context = {.name = name}, .version = "", .offset = 0}, std::move(answer));
    });
    if (!file.ok()) return file.status();
    std::string bytes;
    while (static_cast<int64_t>(bytes.size()) < (*file)->bytes()) {
      const int64_t size = std::min<int64_t>((*file)->bytes() - static_cast<int64_t>(bytes.size()), 100'000);
      const auto piece = Await<std::string>(
          [&](auto answer) { (*file)->Read(static_cast<int64_t>(bytes.size()), size, std::move(answer)); });
      if (!piece.ok()) return piece.status();
      bytes += *piece;
    }
    const auto digest = Await<Sha256Digest>([&](auto answer) { (*file)->ReadDigest(std::move(answer)); });
    EXPECT_EQ(*digest, DigestOf(bytes));
    return bytes;
  }
  absl::StatusOr<NamedContext> Import(const std::string& file, const std::string& name) {
    for (size_t at = 0;; at += 50'000) {
      ImportPart part = {
          .upload = name, .offset = static_cast<int64_t>(at), .data = file.substr(at, 50'000), .last = {}};
      if (at + 50'000 >= file.size()) part.last = ImportPart::Last{.keep_as = {.name = name}, .sha256 = DigestOf(file)};
      const auto progress =
          Await<ImportProgress>([&](auto answer) { transfers_.Import(client_, std::move(part), std::move(answer)); });
      if (!progress.ok()) return progress.status();
      if (progress->context) return *progress->context;
    }
  }
  absl::StatusOr<NamedContext> Get(const std::string& name) {
    return Await<NamedContext>(
        [&](auto answer) { cluster_.coordinator().GetContext("", {.name = name}, std::move(answer)); });
  }
  void Create(const std::string& name, const Ids& text) {
    const auto created =
        cluster_.Generate(text, 0, [&](Request* request) { request->keep_as = Request::KeepAs{.name = name}; });
    ASSERT_TRUE(created->Wait().ok()) << created->Wait();
  }
  // A request over the context has the logits of one that reads all, and reads nothing but its own tokens.
  void ExpectLogits(const std::string& name, const Ids& text) {
    const Ids own = {9, 2, 5};
    Ids all = text;
    all.insert(all.end(), own.begin(), own.end());
    const auto cold = cluster_.Score(all, {{7, 8, 9}}, false, [](Request* request) { request->cache = false; });
    // Neither leaves anything of its own.
    const auto warm = cluster_.Score(own, {{7, 8, 9}}, false, [&](Request* request) {
      request->context = name;
      request->cache = false;
    });
    ASSERT_TRUE(cold->Wait().ok()) << cold->Wait();
    ASSERT_TRUE(warm->Wait().ok()) << warm->Wait();
    // On a slow disk, computing so short a text may look cheaper than loading it.
    EXPECT_TRUE(warm->usage().cached_tokens == 0 || warm->usage().cached_tokens == static_cast<int64_t>(text.size()))
        << warm->usage().cached_tokens;
    ASSERT_EQ(warm->logits(0).size(), cold->logits(0).size());
    EXPECT_EQ(std::memcmp(warm->logits(0).data(), cold->logits(0).data(), cold->logits(0).size() * sizeof(float)), 0);
  }

 private:
  static Sha256Digest DigestOf(const std::string& bytes) {
    Sha256 hash;
    hash.Add(bytes);
    return hash.Finish();
  }
  std::shared_ptr<SegmentStore> OpenStore(const std::string& folder, int64_t bytes) {
    StoreOptions options = {.folder = "memory", .bytes_max = bytes, .files = &files_};
    if (!folder.empty()) {
      options.folder = testing::TempDir() + "/" + folder;
      options.files = Files::System();
      std::filesystem::remove_all(options.folder);
    }
    auto store = SegmentStore::Open(options);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  MemoryFiles files_;
  const std::shared_ptr<SegmentStore> store_;
  const std::shared_ptr<const Client> client_ = std::make_shared<Client>();
  LocalCluster cluster_;
  ContextTransfers transfers_;
};

class ExchangeTest : public testing::TestWithParam<std::string> {
 protected:
  const GoldenCase golden_ = ReadGoldenCase(GetParam());
  const std::string model_ = golden_.checkpoint->path();
};

TEST_P(ExchangeTest, AFileOfThreeStagesIsAContextOfTwo) {
  const Ids& text = golden_.tokens;
  std::string file;
  {
    Server from(model_, 3, absl::StrCat("from_", GetParam()));
    from.Create("doc", text);
    const auto exported = from.Export("doc");
    ASSERT_TRUE(exported.ok()) << exported.status();
    file = *exported;
    EXPECT_EQ(*from.Export("doc"), file) << "always the same bytes";
    from.cluster().ExpectNothingHeld();
  }
  // By way of a disk, and of memory.
  for (const std::string& folder : {absl::StrCat("to_", GetParam()), std::string()}) {
    Server to(model_, 2, folder);
    const auto imported = to.Import(file, "book");
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(imported->name, "book");
    EXPECT_EQ(imported->tokens, static_cast<int64_t>(text.size()));
    EXPECT_FALSE(imported->in_memory);
    EXPECT_TRUE(imported->on_disk);
    EXPECT_EQ(imported->snapshots, std::vector<int64_t>{imported->tokens});
    to.ExpectLogits("book", text);
    EXPECT_EQ(*to.Export("book"), file) << "the server leaves no trace in it";
    // The same text once more, under another name: it is kept once.
    const auto again = to.Import(file, "copy");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->shared_bytes, again->bytes);
    EXPECT_EQ(to.store().totals().segments, 1);
    EXPECT_TRUE(absl::IsAlreadyExists(to.Import(file, "copy").status()));
    to.ExpectLogits("copy", text);
    to.cluster().ExpectNothingHeld();
    EXPECT_EQ(to.store().totals().segments, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ExchangeTest, testing::Values("goldfinch", "finch"),
                         [](const auto& info) { return info.param; });

TEST(ExchangeErrorsTest, AnotherModelAndTheLackOfAStoreAreNamed) {
  const GoldenCase goldfinch = ReadGoldenCase("goldfinch"), finch = ReadGoldenCase("finch");
  Server from(goldfinch.checkpoint->path(), 1, "");
  from.Create("doc", goldfinch.tokens);
  const auto file = from.Export("doc");
  ASSERT_TRUE(file.ok()) << file.status();
  Server to(finch.checkpoint->path(), 1, "");
  const absl::Status other = to.Import(*file, "doc").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_THAT(other.ToString(), HasSubstr("; this model is "));
  EXPECT_TRUE(absl::IsNotFound(to.Get("doc").status()));
  EXPECT_TRUE(absl::IsNotFound(to.Export("doc").status()));
  EXPECT_EQ(to.store().totals().bytes, 0);

  LocalCluster without(goldfinch.checkpoint->path(), 1);
  without.AwaitReady();
  ContextTransfers transfers(&without.coordinator());
  const auto client = std::make_shared<Client>();
  const auto exported = Await<std::shared_ptr<ContextTransfers::File>>([&](auto answer) {
    transfers.OpenFile(client, {.context = {.name = "doc"}, .version = "", .offset = 0}, std::move(answer));
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(exported.status())) << exported.status();
  EXPECT_THAT(exported.status().ToString(), HasSubstr("start it with a folder for contexts"));
  const auto imported = Await<ImportProgress>([&](auto answer) {
    transfers.Import(client, {.upload = "up", .offset = 0, .data = *file, .last = {}}, std::move(answer));
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(imported.status())) << imported.status();
}

TEST(ExchangeErrorsTest, AForkWithoutASnapshotSaysWhatToDo) {
  const GoldenCase golden = ReadGoldenCase("goldfinch");
  Server server(golden.checkpoint->path(), 2, "");
  server.Create("doc", golden.tokens);
  const auto forked = Await<NamedContext>([&](auto answer) {
    server.cluster().coordinator().ForkContext(
        "", {.context = "doc", .context_tokens = 100, .keep_as = {.name = "part"}}, std::move(answer));
  });
  ASSERT_TRUE(forked.ok()) << forked.status();
  const absl::Status status = server.Export("part").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.ToString(), HasSubstr("the next request over it that has a prompt computes them"));
  const auto asked = server.cluster().Generate({5}, 1, [](Request* request) { request->context = "part"; });
  ASSERT_TRUE(asked->Wait().ok()) << asked->Wait();
  const auto file = server.Export("part");
  ASSERT_TRUE(file.ok()) << file.status();
  Server to(golden.checkpoint->path(), 3, "");
  ASSERT_TRUE(to.Import(*file, "part").ok());
  to.ExpectLogits("part", Ids(golden.tokens.begin(), golden.tokens.begin() + 100));
}

}  // namespace
}  // namespace goldfinch
