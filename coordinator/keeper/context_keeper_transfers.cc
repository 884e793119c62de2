// ContextKeeper: contexts as files.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/store/segment_writer.h"

namespace goldfinch {
namespace {

constexpr size_t kExportsMax = 64;  // that wait until all of their contexts is in the store

}  // namespace

absl::Status ContextKeeper::CheckStore() const {
  if (store_ != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "contexts are exported and imported by way of a store, and the server has none: start it with a folder for "
      "contexts, context_dir");
}

// ---- Export

void ContextKeeper::OpenExport(const std::string& name_space, const ExportContextQuery& query, double now,
                               ExportAnswer answer) {
  if (absl::Status store = CheckStore(); !store.ok()) return answer(std::move(store));
  const absl::StatusOr<ContextInfo> asked = tree_->Get(name_space, query.name, query.etag);
  if (!asked.ok()) return answer(asked.status());
  const absl::StatusOr<ContextInfo> context = tree_->Use(name_space, query.name, now);
  if (!context.ok()) return answer(context.status());
  NameChanged(name_space, query.name);
  Exporting exporting = {.etag = context->etag, .hold = {trees_, context->segment}, .failed = {}, .answer = {}};
  exporting.answer = std::move(answer);
  absl::Status status;
  const uint64_t tuned = tree_->TunedOf(context->segment);
  if (tuned != 0 && tuned != context->segment) {
    status = absl::FailedPreconditionError(absl::StrCat("context \"", query.name,
                                                        "\" begins with a tuned state, of which a file of a text "
                                                        "cannot tell: only the state itself can be exported"));
  } else if (!context->usable) {
    status = absl::FailedPreconditionError(
        absl::StrCat("context \"", query.name,
                     "\" has not all of its bytes, as after a fork or a loss of workers: the next request over it that "
                     "has a prompt computes them, and then it can be exported"));
  } else if (!store_->HasText(context->segment)) {
    if (exports_.size() >= kExportsMax) {
      status = absl::ResourceExhaustedError(absl::StrCat(kExportsMax, " exports wait for workers, the limit"));
    } else {
      SegmentDrops drops;
      status = store_->SaveNow(context->segment, now, &drops);
      Note(&drops);
    }
  }
  if (!status.ok()) {
    ReleaseHeld(exporting.hold);
    return exporting.answer(std::move(status));
  }
  exports_.push_back(std::move(exporting));
  LookAtExports();
}

void ContextKeeper::EndExport(const Held& hold) { ReleaseHeld(hold); }

// A move has ended that was to save this segment.
void ContextKeeper::NoteMoved(uint64_t saved, const absl::Status& status) {
  if (status.ok()) return;
  for (Exporting& one : exports_) {
    const std::vector<uint64_t> chain = tree_->Chain(one.hold.segment);
    if (std::find(chain.begin(), chain.end(), saved) != chain.end()) one.failed = status;
  }
}

// Answers those whose texts are in the store, or will not be.
void ContextKeeper::LookAtExports() {
  for (Exporting& one : std::exchange(exports_, {})) {
    if (store_->HasText(one.hold.segment)) {
      one.answer(Exported{one.etag, store_->KeysOf(one.hold.segment), one.hold});
    } else if (store_->TextComes(one.hold.segment)) {
      exports_.push_back(std::move(one));
    } else {
      ReleaseHeld(one.hold);
      one.answer(one.failed.ok() ? absl::UnavailableError("the workers that have the context were lost")
                                 : absl::Status(one.failed.code(), absl::StrCat("the context cannot be written to the "
                                                                                "store: ",
                                                                                one.failed.message())));
    }
  }
}

// ---- Import

absl::StatusOr<uint64_t> ContextKeeper::MakeRoom(const std::string& name_space, int64_t bytes, double now) {
  GF_RETURN_IF_ERROR(CheckStore());
  SetQuota(name_space);
  SegmentDrops drops;
  const absl::Status status = tree_->Reserve(store_->tier(), name_space, bytes, now, &drops);
  Note(&drops);
  GF_RETURN_IF_ERROR(status);
  rooms_[++last_room_] = {trees_, name_space, bytes};
  return last_room_;
}

void ContextKeeper::EndRoom(uint64_t room) {
  const auto found = rooms_.find(room);
  if (found == rooms_.end()) return;
  if (found->second.tree == trees_) {
    tree_->Unreserve(store_->tier(), found->second.name_space, found->second.bytes);
  }
  rooms_.erase(found);
}

absl::StatusOr<NamedContext> ContextKeeper::NameImport(const std::string& name_space, const Request::KeepAs& keep_as,
                                                       uint64_t segment, double now) {
  GF_ASSIGN_OR_RETURN(const ContextInfo named, Name(name_space, keep_as, segment, now));
  return Describe(named);
}

void ContextKeeper::KeepImport(const std::string& name_space, ImportedContext imported, uint64_t room, double now,
                               ImportAnswer answer) {
  if (absl::Status store = CheckStore(); !store.ok()) return answer(std::move(store));
  EndRoom(room);
  if (imported.ids.empty()) {
    const SegmentKey key = imported.writer->key();
    return KeepTuned(name_space, key, std::move(imported.writer), std::move(imported.keep_as), now, std::move(answer));
  }
  const Request::KeepAs& keep_as = imported.keep_as;
  if (absl::Status status = CheckKeepAs(name_space, keep_as); !status.ok()) {
    store_->Discard(std::move(imported.writer));
    return answer(std::move(status));
  }
  SegmentBytes bytes = segment_bytes_;
  bytes.logits = imported.has_logits;
  const double seconds = token_seconds_ * static_cast<double>(imported.ids.size());
  SegmentDrops drops;
  absl::StatusOr<StoreTier::Importing> importing =
      store_->Import(name_space, imported.ids, bytes, seconds, imported.writer, now, &drops);
  Note(&drops);
  if (importing.ok()) {
    tree_->Hold(importing->segment, now);
    imports_.push_back(
        {importing->move, {trees_, importing->segment}, name_space, std::move(imported.keep_as), std::move(answer)});
    return;
  }
  store_->Discard(std::move(imported.writer));
  if (!absl::IsAlreadyExists(importing.status())) return answer(importing.status());
  // The text is kept already: what is there of it is as good.
  const absl::StatusOr<AddedSegment> there = tree_->Add(name_space, 0, imported.ids, bytes, seconds, now);
  if (!there.ok()) return answer(there.status());
  absl::StatusOr<NamedContext> named = NameImport(name_space, keep_as, there->number, now);
  ReleaseHeld({trees_, there->number});
  answer(std::move(named));
}

void ContextKeeper::KeepTuned(const std::string& name_space, const SegmentKey& key,
                              std::shared_ptr<SegmentWriter> writer, Request::KeepAs keep_as, double now,
                              ImportAnswer answer) {
  if (absl::Status store = CheckStore(); !store.ok()) return answer(std::move(store));
  if (absl::Status status = CheckKeepAs(name_space, keep_as); !status.ok()) {
    store_->Discard(std::move(writer));
    return answer(std::move(status));
  }
  SetQuota(name_space);
  SegmentDrops drops;
  const absl::StatusOr<StoreTier::Importing> importing =
      store_->ImportTuned(name_space, key, segment_bytes_.snapshot, writer, now, &drops);
  Note(&drops);
  if (importing.ok()) {
    tree_->Hold(importing->segment, now);
    imports_.push_back(
        {importing->move, {trees_, importing->segment}, name_space, std::move(keep_as), std::move(answer)});
    return;
  }
  store_->Discard(std::move(writer));
  if (!absl::IsAlreadyExists(importing.status())) return answer(importing.status());
  const uint64_t there = tree_->FindTuned(key);
  tree_->Hold(there, now);
  absl::StatusOr<NamedContext> named = NameImport(name_space, keep_as, there, now);
  ReleaseHeld({trees_, there});
  answer(std::move(named));
}

void ContextKeeper::EndImport(uint64_t move, const StoreMoved& moved, double now) {
  const auto found =
      std::find_if(imports_.begin(), imports_.end(), [&](const Importing& one) { return one.move == move; });
  if (found == imports_.end()) return;
  Importing one = std::move(*found);
  imports_.erase(found);
  absl::StatusOr<NamedContext> named = absl::InternalError("the context is not in the store any more");
  if (store_->HasText(one.hold.segment)) {
    named = NameImport(one.name_space, one.keep_as, one.hold.segment, now);
  } else if (!moved.status.ok()) {
    named = moved.status;
  }
  ReleaseHeld(one.hold);
  one.answer(std::move(named));
}

void ContextKeeper::EndTransfers(const absl::Status& status) {
  for (Exporting& one : std::exchange(exports_, {})) {
    ReleaseHeld(one.hold);
    one.answer(status);
  }
  for (Importing& one : std::exchange(imports_, {})) {
    ReleaseHeld(one.hold);
    one.answer(status);
  }
}

}  // namespace goldfinch
