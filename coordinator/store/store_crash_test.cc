// A change of a store that the end of the process, the end of the machine or an error of the disk interrupts, at every
// call to the file system that it makes: afterwards the folder has the old state or the new one, and nothing else.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/crc32c.h"
#include "coordinator/store/fault_files.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;

const TestSegment& Root() {
  static const TestSegment root = MakeTestSegment(20, 1);
  return root;
}
const TestSegment& Child() {
  static const TestSegment child = MakeTestChild(Root(), 5, 2);
  return child;
}

ContextName NewName(const std::string& text) {
  ContextName name;
  name.name = text;
  name.segment = Root().key;
  return name;
}

// Every segment with the checksum of all that is read of it, and every name.
std::string StateOf(SegmentStore* store) {
  std::vector<std::string> lines;
  for (const StoredSegment& stored : store->Segments()) {
    const auto sections = LoadSections(store, stored.key);
    lines.push_back(absl::StrCat(
        Hex(stored.key), " ", stored.has_snapshot ? "with" : "without", " snapshot: ",
        sections.ok() ? absl::StrCat(Crc32c(absl::StrJoin(*sections, ""))) : sections.status().ToString()));
  }
  for (const ContextName& name : store->Names()) {
    lines.push_back(absl::StrCat(name.name, " at ", name.position, " of ", Hex(name.segment), ", ", name.revision));
  }
  std::sort(lines.begin(), lines.end());
  return absl::StrJoin(lines, "\n");
}

struct Change {
  std::string name;
  std::function<void(SegmentStore*)> before;
  std::function<absl::Status(SegmentStore*)> change;
};

absl::Status ChangeName(SegmentStore* store) {
  for (ContextName name : store->Names()) {
    name.position = 7;
    name.name = "renamed";
    return store->PutName(name).status();
  }
  return absl::NotFoundError("no name");
}

std::vector<Change> Changes() {
  const auto root = [](SegmentStore* store) { (void)SaveTestSegment(store, Root(), 4096); };
  const auto root_and_child = [=](SegmentStore* store) {
    root(store);
    (void)SaveTestSegment(store, Child(), 4096);
  };
  const auto root_with_name = [=](SegmentStore* store) {
    root(store);
    (void)store->PutName(NewName("document"));
  };
  const auto save_root = [](SegmentStore* store) { return SaveTestSegment(store, Root(), 4096); };
  return {
      {"SaveOfTheFirst", [](SegmentStore*) {}, save_root},
      {"SaveOfAnother", root, [](SegmentStore* store) { return SaveTestSegment(store, Child(), 1500); }},
      {"SaveOfAMissingSnapshot",
       [=](SegmentStore* store) {
         root_and_child(store);
         (void)store->DropSnapshot(Root().key);
       },
       save_root},
      {"DropOfASnapshot", root_and_child, [](SegmentStore* store) { return store->DropSnapshot(Root().key); }},
      {"Deletion", root_and_child, [](SegmentStore* store) { return store->Delete(Child().key); }},
      {"NewName", root, [](SegmentStore* store) { return store->PutName(NewName("document")).status(); }},
      {"ChangeOfAName", root_with_name, ChangeName},
      {"DeletionOfAName", root_with_name,
       [](SegmentStore* store) { return store->DeleteName(store->Names().at(0).id); }},
  };
}

class StoreCrashTest : public testing::TestWithParam<Change> {
 protected:
  StoreCrashTest() {
    GetParam().before(OpenTestStore(start_).get());
    old_state_ = StateOf(OpenTestStore(start_).get());
    Reset();
    FaultFiles counting(Fault::kNone, 0);
    const auto store = OpenTestStore(folder_, 1 << 30, &counting);
    EXPECT_EQ(GetParam().change(store.get()), absl::OkStatus());
    calls_ = counting.calls();
    new_state_ = StateOf(store.get());
  }

  void Reset() {
    fs::remove_all(folder_);
    fs::copy(start_, folder_, fs::copy_options::recursive);
  }

  void CheckFolder(SegmentStore* store) {
    EXPECT_THAT(StateOf(store), AnyOf(old_state_, new_state_));
    EXPECT_EQ(store->totals().quarantined_total, 0);
    EXPECT_EQ(store->totals().bytes, BytesIn(folder_));
    for (const std::string& name : NamesIn(folder_)) EXPECT_THAT(name, Not(HasSubstr("partial")));
  }

  const std::string start_ = EmptyTestFolder(absl::StrCat("crash_start_", GetParam().name));
  const std::string folder_ = EmptyTestFolder(absl::StrCat("crash_", GetParam().name));
  std::string old_state_, new_state_;
  int calls_ = 0;
};

TEST_P(StoreCrashTest, TheEndAtEveryCallLeavesTheOldStateOrTheNewOne) {
  ASSERT_GE(calls_, 2);
  ASSERT_NE(old_state_, new_state_);
  bool old_seen = false;
  for (const Fault fault : {Fault::kKill, Fault::kLoseData, Fault::kLoseNames, Fault::kLoseEverything}) {
    for (int call = 0; call <= calls_; ++call) {
      SCOPED_TRACE(absl::StrCat("fault ", static_cast<int>(fault), " at call ", call));
      Reset();
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        FaultFiles faulty(fault, call);
        const auto store = OpenTestStore(folder_, 1 << 30, &faulty);
        if (GetParam().change(store.get()).ok()) faulty.End();
        _exit(0);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_EQ(WEXITSTATUS(status), FaultFiles::kExitCode);
      const auto store = OpenTestStore(folder_);
      CheckFolder(store.get());
      const std::string state = StateOf(store.get());
      old_seen |= state == old_state_;
      if (call == calls_) {
        EXPECT_EQ(state, new_state_) << "a change that has returned stays";
      }
    }
  }
  EXPECT_TRUE(old_seen);
}

TEST_P(StoreCrashTest, AnErrorAtEveryCallIsAStatusAndTheStoreGoesOn) {
  for (const int error : {ENOSPC, EIO, EROFS}) {
    for (int call = 0; call < calls_; ++call) {
      SCOPED_TRACE(absl::StrCat("error ", error, " at call ", call));
      Reset();
      FaultFiles faulty(Fault::kError, call, error);
      {
        const auto store = OpenTestStore(folder_, 1 << 30, &faulty);
        const absl::Status status = GetParam().change(store.get());
        EXPECT_EQ(absl::IsResourceExhausted(status), error == ENOSPC) << status;
        EXPECT_EQ(absl::IsPermissionDenied(status), error == EROFS) << status;
        EXPECT_EQ(absl::IsInternal(status), error == EIO) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(folder_));
        CheckFolder(store.get());
        // Where it did not happen, the next try succeeds.
        if (StateOf(store.get()) == old_state_) {
          EXPECT_EQ(GetParam().change(store.get()), absl::OkStatus());
        }
        EXPECT_EQ(StateOf(store.get()), new_state_);
      }
      const auto store = OpenTestStore(folder_);
      EXPECT_EQ(StateOf(store.get()), new_state_);
      CheckFolder(store.get());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Changes, StoreCrashTest, testing::ValuesIn(Changes()),
                         [](const auto& info) { return info.param.name; });

// Runs the test in a process of its own, which may have mounts of its own. Skipped where `setup` is not allowed.
void RunApart(const std::function<bool()>& setup, const std::function<void()>& test) {
  constexpr int kNotAllowed = 77;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!setup()) _exit(kNotAllowed);
    test();
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WEXITSTATUS(status) == kNotAllowed) GTEST_SKIP() << "this process may not do what the test needs";
  EXPECT_EQ(status, 0);
}

bool MountTmpfs(const std::string& folder) {
  fs::create_directory(folder);
  if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  (void)mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  return mount("none", folder.c_str(), "tmpfs", 0, "size=64k") == 0;
}

TEST(StoreDiskTest, AFullTmpfsIsAStatusAndWhatIsThereStays) {
  const std::string folder = EmptyTestFolder("full_tmpfs");
  RunApart([&] { return MountTmpfs(folder); },
           [&] {
             const auto store = OpenTestStore(folder);
             absl::Status status;
             int saved = 0;
             while (status.ok() && saved < 100) {
               status = SaveTestSegment(store.get(), MakeTestSegment(20, saved + 1), 4096);
               if (status.ok()) ++saved;
             }
             EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
             EXPECT_THAT(status.ToString(), HasSubstr("No space left on device"));
             EXPECT_GE(saved, 1);
             EXPECT_EQ(store->totals().bytes, BytesIn(folder));
             const TestSegment first = MakeTestSegment(20, 1);
             EXPECT_EQ(*LoadSections(store.get(), first.key), first.sections);
             EXPECT_EQ(store->DropSnapshot(first.key), absl::OkStatus()) << "this makes room";
             EXPECT_EQ(SaveTestSegment(store.get(), MakeTestSegment(1, 1000), 4096), absl::OkStatus());
           });
}

TEST(StoreDiskTest, AReadOnlyFileSystemIsAStatus) {
  const std::string folder = EmptyTestFolder("read_only_tmpfs");
  RunApart([&] { return MountTmpfs(folder); },
           [&] {
             StoreOptions options;
             options.folder = folder;
             auto store = OpenTestStore(folder);
             ASSERT_EQ(SaveTestSegment(store.get(), Root(), 4096), absl::OkStatus());
             // The lock is open for writing, which a mount that becomes read-only does not allow.
             store.reset();
             ASSERT_EQ(mount("none", folder.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0);
             const absl::Status status = SegmentStore::Open(options).status();
             EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
             EXPECT_THAT(status.ToString(), HasSubstr(folder + "/lock: cannot be opened: Read-only file system"));
           });
}

TEST(StoreDiskTest, AFolderOfAnotherUserIsAStatus) {
  const std::string folder = EmptyTestFolder("of_another_user");
  OpenTestStore(folder).reset();
  RunApart([&] { return chmod(folder.c_str(), 0500) == 0 && (geteuid() != 0 || setuid(65534) == 0); },
           [&] {
             StoreOptions options;
             options.folder = folder;
             const absl::Status status = SegmentStore::Open(options).status();
             EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
             EXPECT_THAT(status.ToString(), HasSubstr(folder));
           });
}

}  // namespace
}  // namespace goldfinch
