// Coordinator: contexts as files. The keeper decides; the bytes go between clients and the store without this thread.
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/coordinator.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/store/segment_writer.h"

namespace goldfinch {
namespace {

// Room that was made for an import.
struct ImportRoom {
  uint64_t number = 0;
};

}  // namespace

// Whether files of contexts can be exported and imported now.
absl::Status Coordinator::TransfersPossible() const {
  if (draining_) return absl::UnavailableError("the server is shutting down");
  if (store_threads_ == nullptr) return keeper_.CheckStore();
  return NamesKnown();
}

void Coordinator::OpenExport(const std::string& name_space, ExportContextQuery query, Answer<StoredContext> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double now) mutable {
    if (absl::Status possible = TransfersPossible(); !possible.ok()) return answer(std::move(possible));
    keeper_.OpenExport(name_space, query, now,
                       [this, answer = std::move(answer)](absl::StatusOr<ContextKeeper::Exported> exported) mutable {
                         if (!exported.ok()) return answer(exported.status());
                         StoredContext context;
                         context.etag = exported->etag;
                         context.store = options_.store;
                         context.chain = std::move(exported->chain);
                         const ContextKeeper::Held hold = exported->hold;
                         context.hold = std::shared_ptr<const void>(nullptr, [this, hold](const void*) {
                           Post([this, hold](double) { keeper_.EndExport(hold); });
                         });
                         answer(std::move(context));
                       });
  });
}

void Coordinator::OpenImport(Answer<ImportTarget> answer) {
  Post([this, answer = std::move(answer)](double) mutable {
    if (absl::Status possible = TransfersPossible(); !possible.ok()) return answer(std::move(possible));
    answer(ImportTarget{options_.store, context_model_, options_.membership.partition.max_sequence_tokens});
  });
}

void Coordinator::MakeRoom(const std::string& name_space, int64_t bytes, Answer<std::shared_ptr<const void>> answer) {
  Post([this, name_space, bytes, answer = std::move(answer)](double now) mutable {
    if (absl::Status possible = TransfersPossible(); !possible.ok()) return answer(std::move(possible));
    const absl::StatusOr<uint64_t> number = keeper_.MakeRoom(name_space, bytes, now);
    MoveContexts(now);
    if (!number.ok()) return answer(number.status());
    std::shared_ptr<const void> room(new ImportRoom{*number}, [this](const ImportRoom* made) {
      Post([this, number = made->number](double) { keeper_.EndRoom(number); });
      delete made;
    });
    // What had to go for it is gone when all that was to be done before has been done.
    store_threads_->After([answer = std::move(answer), room = std::move(room)]() mutable { answer(std::move(room)); });
  });
}

void Coordinator::KeepImport(const std::string& name_space, ImportedContext imported, Answer<NamedContext> answer) {
  Post([this, name_space, imported = std::move(imported), answer = std::move(answer)](double now) mutable {
    const auto* const room = static_cast<const ImportRoom*>(imported.room.get());
    const uint64_t number = room == nullptr ? 0 : room->number;
    keeper_.KeepImport(name_space, std::move(imported), number, now, std::move(answer));
  });
}

}  // namespace goldfinch
