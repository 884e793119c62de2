// The Contexts stream of a worker in the coordinator's own process.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_SHELF_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_SHELF_H_

#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace goldfinch {

class ContextShelf;
class ShelfListener;

// Opens a stream from construction on, and again whenever the coordinator closes it, as long as it knows the token.
// Pieces wait for each other on a thread of its own.
class EmbeddedShelf {
 public:
  // `token` is Welcome.contexts_token. `shelf` and `coordinator` must outlive this object; of a shelf, there is one at
  // a time.
  EmbeddedShelf(ContextShelf& shelf, ShelfListener& coordinator, std::string token);
  // Ends the stream. Not to be called on a thread that the listener waits for.
  ~EmbeddedShelf();
  EmbeddedShelf(const EmbeddedShelf&) = delete;
  EmbeddedShelf& operator=(const EmbeddedShelf&) = delete;

 private:
  class Link;

  void Run();

  ContextShelf& shelf_;
  ShelfListener& coordinator_;
  const std::string token_;

  std::mutex mutex_;
  bool stopping_ = false;       // guarded by mutex_
  std::shared_ptr<Link> link_;  // guarded by mutex_; null: there is none

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_SHELF_H_
