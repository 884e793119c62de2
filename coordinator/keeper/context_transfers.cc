#include "coordinator/keeper/context_transfers.h"

#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/fair_queue.h"
#include "base/log_limiter.h"
#include "base/status.h"
#include "coordinator/store/context_transfer.h"
#include "coordinator/store/segment_writer.h"

namespace goldfinch {
namespace {

// So much is hashed at a time; then others have their turn.
constexpr int64_t kHashBytes = int64_t{8} << 20;

// What the coordinator's thread answers, which it does soon.
template <typename T, typename Ask>
absl::StatusOr<T> Await(const Ask& ask) {
  const auto promise = std::make_shared<std::promise<absl::StatusOr<T>>>();
  std::future<absl::StatusOr<T>> answer = promise->get_future();
  ask([promise](absl::StatusOr<T> given) { promise->set_value(std::move(given)); });
  return answer.get();
}

std::string VersionOf(const ContextExport& transfer) {
  const Sha256Digest digest = transfer.Version();
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), kFileVersionDigits / 2});
}

}  // namespace

// What threads and answers of the directory refer to, which may come when the ContextTransfers is gone.
class ContextTransfers::State : public std::enable_shared_from_this<State> {
 public:
  State(ContextDirectory* directory, const TransferLimits& limits)
      : directory_(directory), limits_(limits), uploads_(limits.uploads), queue_(limits.threads) {}

  void Stop() { queue_.Stop(); }

  void OpenFile(std::shared_ptr<const Client> client, FileQuery query, Answer<std::shared_ptr<File>> answer);
  void Import(std::shared_ptr<const Client> client, ImportPart part, Answer<ImportProgress> answer) {
    const std::string name = client->name;
    queue_.Post(name,
                [self = shared_from_this(), client = std::move(client), part = std::move(part),
                 answer = std::move(answer)]() mutable { self->Take(*client, std::move(part), std::move(answer)); });
  }
  void Sweep() {
    if (sweeping_.exchange(true)) return;
    queue_.Post("", [self = shared_from_this()] {
      self->sweeping_ = false;
      UploadTable::Removed removed;  // goes without the lock
      const std::lock_guard<std::mutex> lock(self->mutex_);
      removed = self->uploads_.Sweep(SteadySeconds());
    });
  }

 private:
  class OpenedFile;
  class ExportPlace;

  // On threads of queue_.
  void Take(const Client& client, ImportPart part, Answer<ImportProgress> answer);
  // How far the upload is, or what has become of it.
  ImportProgress Tell(const Client& client, const UploadKey& key);
  // The upload that the part goes on, which is busy then.
  absl::StatusOr<Upload*> Claim(const Client& client, const UploadKey& key, const ImportPart& part);
  absl::Status Append(const Client& client, Upload* upload, const std::string& data);
  absl::StatusOr<ImportedContext> Complete(Upload* upload, ImportPart::Last last);
  void Release(Upload* upload, int64_t received);
  // Removes the upload, which is busy.
  void Remove(const UploadKey& key);

  ContextDirectory* const directory_;
  const TransferLimits limits_;

  std::mutex mutex_;                    // held for moments
  std::map<std::string, int> exports_;  // guarded by mutex_; by client
  int exports_all_ = 0;                 // guarded by mutex_
  UploadTable uploads_;                 // guarded by mutex_, but for the contents of uploads that are busy
  std::atomic<bool> sweeping_ = false;  // a Sweep is posted
  FairQueue queue_;
};

// ---- Export

// A place among the exports that may be open.
class ContextTransfers::State::ExportPlace {
 public:
  static absl::StatusOr<std::unique_ptr<ExportPlace>> Take(std::shared_ptr<State> state, const std::string& client) {
    const std::lock_guard<std::mutex> lock(state->mutex_);
    const TransferLimits& limits = state->limits_;
    int& of_client = state->exports_[client];
    if (of_client >= limits.exports_of_client_max || state->exports_all_ >= limits.exports_max) {
      const bool own = of_client >= limits.exports_of_client_max;
      if (of_client == 0) state->exports_.erase(client);
      return absl::ResourceExhaustedError(absl::StrCat(own ? "the client has " : "there are ",
                                                       own ? limits.exports_of_client_max : limits.exports_max,
                                                       " exports under way, which is the limit"));
    }
    ++of_client;
    ++state->exports_all_;
    return std::unique_ptr<ExportPlace>(new ExportPlace(state, client));
  }
  ~ExportPlace() {
    const std::lock_guard<std::mutex> lock(state_->mutex_);
    --state_->exports_all_;
    const auto of_client = state_->exports_.find(client_);
    if (--of_client->second == 0) state_->exports_.erase(of_client);
  }
  ExportPlace(const ExportPlace&) = delete;
  ExportPlace& operator=(const ExportPlace&) = delete;

 private:
  ExportPlace(std::shared_ptr<State> state, std::string client)
      : state_(std::move(state)), client_(std::move(client)) {}

  const std::shared_ptr<State> state_;
  const std::string client_;
};

class ContextTransfers::State::OpenedFile final : public File, public std::enable_shared_from_this<OpenedFile> {
 public:
  OpenedFile(std::shared_ptr<State> state, std::unique_ptr<ExportPlace> place, std::string client,
             StoredContext context, std::unique_ptr<ContextExport> transfer, std::string etag)
      : state_(std::move(state)),
        place_(std::move(place)),
        client_(std::move(client)),
        context_(std::move(context)),
        etag_(std::move(etag)),
        transfer_(std::move(transfer)) {}

  const std::string& etag() const override { return etag_; }
  int64_t bytes() const override { return transfer_->bytes(); }

  void Read(int64_t offset, int64_t size, Answer<std::string> answer) override {
    state_->queue_.Post(client_, [self = shared_from_this(), offset, size, answer = std::move(answer)]() mutable {
      std::string bytes(size, '\0');
      absl::Status status = self->transfer_->Read(offset, absl::MakeSpan(bytes));
      if (!status.ok()) return answer(std::move(status));
      answer(std::move(bytes));
    });
  }

  void ReadDigest(Answer<Sha256Digest> answer) override {
    state_->queue_.Post(client_, [self = shared_from_this(), answer = std::move(answer)]() mutable {
      const absl::StatusOr<bool> whole = self->transfer_->DigestSome(kHashBytes);
      if (!whole.ok()) return answer(whole.status());
      if (!*whole) return self->ReadDigest(std::move(answer));
      answer(self->transfer_->Digest());
    });
  }

 private:
  const std::shared_ptr<State> state_;
  const std::unique_ptr<ExportPlace> place_;
  const std::string client_;
  const StoredContext context_;  // whose store outlives the transfer
  const std::string etag_;
  const std::unique_ptr<ContextExport> transfer_;
};

void ContextTransfers::State::OpenFile(std::shared_ptr<const Client> client, FileQuery query,
                                       Answer<std::shared_ptr<File>> answer) {
  absl::StatusOr<std::unique_ptr<ExportPlace>> place = ExportPlace::Take(shared_from_this(), client->name);
  if (!place.ok()) return answer(place.status());
  ExportContextQuery asked = query.context;
  const auto open = [self = shared_from_this(), name = client->name, query = std::move(query)](
                        std::unique_ptr<ExportPlace> place,
                        StoredContext context) -> absl::StatusOr<std::shared_ptr<File>> {
    GF_ASSIGN_OR_RETURN(std::unique_ptr<ContextExport> transfer,
                        ContextExport::Open(context.store.get(), context.chain));
    const std::string version = VersionOf(*transfer);
    if (!query.version.empty() && query.version != version) {
      return absl::AbortedError(absl::StrCat("what is kept of context \"", query.context.name,
                                             "\" has been computed anew: its file is another one"));
    }
    if (query.offset > transfer->bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("offset is ", query.offset, ", the file has ", transfer->bytes(), " bytes"));
    }
    std::string etag = absl::StrCat(context.etag, "-", version);
    return std::make_shared<OpenedFile>(self, std::move(place), name, std::move(context), std::move(transfer),
                                        std::move(etag));
  };
  directory_->OpenExport(client->name_space, std::move(asked),
                         [self = shared_from_this(), name = client->name, open, place = *std::move(place),
                          answer = std::move(answer)](absl::StatusOr<StoredContext> context) mutable {
                           if (!context.ok()) return answer(context.status());
                           self->queue_.Post(name, [open, place = std::move(place), answer = std::move(answer),
                                                    context = *std::move(context)]() mutable {
                             answer(open(std::move(place), std::move(context)));
                           });
                         });
}

// ---- Import

ImportProgress ContextTransfers::State::Tell(const Client& client, const UploadKey& key) {
  std::optional<Upload::Finished> finished;
  int64_t received = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Upload* const upload = uploads_.Find(key);
    if (upload == nullptr) return {};
    if (upload->finished == nullptr) return {upload->received, std::nullopt};
    finished = *upload->finished;
    received = upload->received;
  }
  absl::StatusOr<NamedContext> context = Await<NamedContext>([&](Answer<NamedContext> answer) {
    directory_->GetContext(client.name_space, {.name = finished->name}, std::move(answer));
  });
  if (context.ok() && context->etag == finished->etag) return {received, *std::move(context)};
  // It has been changed or deleted since: the file may be imported again.
  std::unique_ptr<Upload> removed;
  const std::lock_guard<std::mutex> lock(mutex_);
  const Upload* const upload = uploads_.Find(key);
  if (upload != nullptr && upload->finished != nullptr) removed = uploads_.Remove(key);
  return {};
}

absl::StatusOr<Upload*> ContextTransfers::State::Claim(const Client& client, const UploadKey& key,
                                                       const ImportPart& part) {
  UploadTable::Removed removed;  // goes without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  const double now = SteadySeconds();
  Upload* upload = uploads_.Find(key);
  if (upload != nullptr && upload->finished != nullptr && part.offset == 0) {
    removed.push_back(uploads_.Remove(key));  // the client begins anew
    upload = nullptr;
  }
  if (upload != nullptr && upload->busy) {
    return absl::UnavailableError("another call works with this upload");
  }
  const int64_t received = upload == nullptr ? 0 : upload->received;
  if (part.offset != received) {
    return absl::AbortedError(absl::StrCat("offset is ", part.offset, ", the upload is at ", received,
                                           received == 0 ? ": it is not known, or not any more" : ""));
  }
  if (upload == nullptr) return uploads_.Add(key, client.name, now, &removed);
  upload->busy = true;
  upload->used = now;
  return upload;
}

absl::Status ContextTransfers::State::Append(const Client& client, Upload* upload, const std::string& data) {
  if (upload->import == nullptr) {
    GF_ASSIGN_OR_RETURN(ImportTarget target, Await<ImportTarget>([&](Answer<ImportTarget> answer) {
                          directory_->OpenImport(std::move(answer));
                        }));
    upload->store = std::move(target.store);
    ContextImportOptions options;
    options.name_space = client.name_space;
    options.model = std::move(target.model);
    options.tokens_max = target.tokens_max;
    options.make_room = [this, upload, name_space = client.name_space](int64_t bytes) -> absl::Status {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        GF_RETURN_IF_ERROR(uploads_.Take(upload, bytes, upload->store->totals().bytes_max));
      }
      GF_ASSIGN_OR_RETURN(upload->room, Await<std::shared_ptr<const void>>([&](auto answer) {
                            directory_->MakeRoom(name_space, bytes, std::move(answer));
                          }));
      return absl::OkStatus();
    };
    upload->import = std::make_unique<ContextImport>(upload->store.get(), std::move(options));
  }
  return upload->import->Append(data);
}

absl::StatusOr<ImportedContext> ContextTransfers::State::Complete(Upload* upload, ImportPart::Last last) {
  ImportedContext imported;
  GF_ASSIGN_OR_RETURN(imported.writer, upload->import->Seal(&last.sha256));
  const SegmentSpec& segment = imported.writer->segment();
  imported.has_logits = segment.has_logits;
  GF_ASSIGN_OR_RETURN(imported.ids, imported.writer->ReadIds());
  imported.room = std::move(upload->room);
  imported.keep_as = std::move(last.keep_as);
  return imported;
}

void ContextTransfers::State::Release(Upload* upload, int64_t received) {
  const std::lock_guard<std::mutex> lock(mutex_);
  upload->received = received;
  upload->busy = false;
  upload->used = SteadySeconds();
}

void ContextTransfers::State::Remove(const UploadKey& key) {
  std::unique_ptr<Upload> removed;  // goes without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  removed = uploads_.Remove(key);
}

void ContextTransfers::State::Take(const Client& client, ImportPart part, Answer<ImportProgress> answer) {
  const UploadKey key = {client.name_space, part.upload};
  if (part.data.empty() && !part.last) return answer(Tell(client, key));
  const absl::StatusOr<Upload*> claimed = Claim(client, key, part);
  if (!claimed.ok()) return answer(claimed.status());
  Upload* const upload = *claimed;
  const absl::Status appended = Append(client, upload, part.data);
  if (!appended.ok()) {
    Remove(key);
    return answer(appended);
  }
  const int64_t received = upload->import->received();
  if (!part.last) {
    Release(upload, received);
    return answer(ImportProgress{received, std::nullopt});
  }
  absl::StatusOr<ImportedContext> imported = Complete(upload, *std::move(part.last));
  if (!imported.ok()) {
    Remove(key);
    return answer(imported.status());
  }
  directory_->KeepImport(client.name_space, *std::move(imported),
                         [self = shared_from_this(), key, upload, received,
                          answer = std::move(answer)](absl::StatusOr<NamedContext> named) mutable {
                           if (named.ok()) {
                             const std::lock_guard<std::mutex> lock(self->mutex_);
                             upload->received = received;
                             self->uploads_.Finish(upload, {named->name, named->etag}, SteadySeconds());
                           } else {
                             self->Remove(key);  // which waits for no disk: its writer is gone
                           }
                           if (!named.ok()) return answer(named.status());
                           answer(ImportProgress{received, *std::move(named)});
                         });
}

// ---- The interface

ContextTransfers::ContextTransfers(ContextDirectory* directory, const TransferLimits& limits)
    : state_(std::make_shared<State>(directory, limits)) {}

ContextTransfers::~ContextTransfers() { state_->Stop(); }

void ContextTransfers::OpenFile(std::shared_ptr<const Client> client, FileQuery query,
                                Answer<std::shared_ptr<File>> answer) {
  state_->OpenFile(std::move(client), std::move(query), std::move(answer));
}

void ContextTransfers::Import(std::shared_ptr<const Client> client, ImportPart part, Answer<ImportProgress> answer) {
  state_->Import(std::move(client), std::move(part), std::move(answer));
}

void ContextTransfers::Sweep() { state_->Sweep(); }

}  // namespace goldfinch
