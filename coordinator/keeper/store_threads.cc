#include "coordinator/keeper/store_threads.h"

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/safe_text.h"
#include "base/status.h"
#include "coordinator/store/files.h"
#include "coordinator/store/segment_reader.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// What a person can do something about is a warning; workers come and go.
void LogIfBad(const absl::Status& status) {
  if (status.ok()) return;
  const bool warn = absl::IsResourceExhausted(status) || absl::IsPermissionDenied(status) || absl::IsDataLoss(status) ||
                    absl::IsInternal(status);
  spdlog::log(warn ? spdlog::level::warn : spdlog::level::debug, "contexts: {}",
              SafeText(std::string(status.message())));
}

SegmentContents ContentsOf(const std::optional<StoredSegment>& stored) {
  if (!stored) return 0;
  return stored->has_snapshot ? kRowsAndSnapshot : kRows;
}

// The ids of a segment, if they are those that its key was made of.
absl::StatusOr<std::vector<int32_t>> ReadIds(SegmentStore& store, const StoredSegment& segment) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<SegmentReader> reader, store.Load(segment.key));
  std::vector<int32_t> ids(static_cast<size_t>(segment.end - segment.begin));
  GF_RETURN_IF_ERROR(reader->ReadIds(0, absl::MakeSpan(ids)));
  if (KeyOf(reader->segment(), ids) == segment.key) return ids;
  GF_RETURN_IF_ERROR(reader->Verify());  // finds the same, and quarantines the file
  return absl::DataLossError("a segment has the key of other ids");
}

}  // namespace

StoreThreads::StoreThreads(std::shared_ptr<SegmentStore> store, SegmentMover* mover, StoreEvents events)
    : store_(std::move(store)),
      mover_(mover),
      events_(std::make_shared<const StoreEvents>(std::move(events))),
      queue_(1) {}

StoreThreads::~StoreThreads() = default;

void StoreThreads::Load(absl::AnyInvocable<void(StoreContents contents)> done) {
  queue_.Post([this, done = std::move(done)]() mutable {
    StoreContents contents;
    contents.unread = store_->LeftAlone();
    int64_t bytes = 0;
    for (const StoredSegment& segment : store_->Segments()) {
      absl::StatusOr<std::vector<int32_t>> ids = std::vector<int32_t>();
      if (segment.end > segment.begin) ids = ReadIds(*store_, segment);  // else it is a tuned state
      if (!ids.ok()) {
        LogIfBad(ids.status());
        if (!absl::IsDataLoss(ids.status()) && !absl::IsNotFound(ids.status())) contents.unread.push_back(segment.key);
        continue;
      }
      bytes += segment.bytes;
      contents.segments.push_back({segment, *std::move(ids)});
    }
    const int64_t now = UnixSeconds();
    for (ContextName& name : store_->Names()) {
      if (name.expires_unix_seconds != 0 && name.expires_unix_seconds <= now) {
        LogIfBad(store_->DeleteName(name.id));
      } else {
        contents.names.push_back(std::move(name));
      }
    }
    contents.other_bytes = store_->totals().bytes - bytes;
    done(std::move(contents));
  });
}

SegmentContents StoreThreads::Stored(const SegmentKey& key) const { return ContentsOf(store_->Find(key)); }

void StoreThreads::DoNames() {
  for (;;) {
    StoreAction action;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (names_.empty()) return;
      action = std::move(names_.front());
      names_.pop_front();
    }
    DoName(action);
  }
}

void StoreThreads::DoName(const StoreAction& action) {
  if (action.kind == StoreAction::Kind::kDeleteName) return LogIfBad(store_->DeleteName(action.name.id));
  ContextName name = action.name;
  if (action.expires_in_seconds) {
    name.expires_unix_seconds = UnixSeconds() + std::llround(std::max(*action.expires_in_seconds, 1.0));
  }
  absl::StatusOr<ContextName> kept = store_->PutName(std::move(name));
  LogIfBad(kept.status());
  events_->name_put(action.name, std::move(kept));
}

void StoreThreads::Do(StoreAction action) {
  if (action.kind == StoreAction::Kind::kPutName || action.kind == StoreAction::Kind::kDeleteName) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      names_.push_back(std::move(action));
    }
    return queue_.Post([this] { DoNames(); });
  }
  const auto moved = [events = events_](uint64_t move, const SegmentKey& key) {
    return [events, move, key](const MoveResult& result) {
      LogIfBad(result.status);
      events->moved(move, key, {result.status, result.bytes, result.seconds});
    };
  };
  // One after the other, so that room is free before it is taken; what a move does beyond its beginning is the mover's.
  queue_.Post([this, moved, action = std::move(action)]() mutable {
    DoNames();
    switch (action.kind) {
      case StoreAction::Kind::kSave: {
        auto done = moved(action.move, action.save.key);
        return mover_->Save(std::move(action.save), store_.get(), std::move(done));
      }
      case StoreAction::Kind::kBring: {
        auto done = moved(action.move, action.bring.key);
        return mover_->Bring(std::move(action.bring), store_.get(), std::move(done));
      }
      case StoreAction::Kind::kPublish: {
        absl::Status status = action.writer->Publish();
        if (absl::IsAlreadyExists(status)) status = absl::OkStatus();  // what is there is as good
        const int64_t bytes = action.writer->file_bytes();
        action.writer.reset();
        return moved(action.move, action.key)({std::move(status), bytes, 0});
      }
      case StoreAction::Kind::kDiscard:
        return action.writer.reset();
      case StoreAction::Kind::kDelete:
        return LogIfBad(store_->Delete(action.key));
      case StoreAction::Kind::kDropSnapshot:
        return LogIfBad(store_->DropSnapshot(action.key));
      case StoreAction::Kind::kTouch:
        return store_->Touch(action.key, UnixSeconds());
      case StoreAction::Kind::kPutName:
      case StoreAction::Kind::kDeleteName:
        return;  // above
    }
  });
}

}  // namespace goldfinch
