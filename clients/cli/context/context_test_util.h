// A fake server of contexts, and the fixture of tests of `goldfinch context`.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TEST_UTIL_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "clients/cli/context/context.h"
#include "clients/cli/flags/options.h"
#include "clients/cli/remote/remote_test_util.h"
#include "protos/contexts.grpc.pb.h"

namespace goldfinch {

inline std::string DigestOf(const std::string& bytes) {
  Sha256 hash;
  hash.Add(bytes);
  const Sha256Digest digest = hash.Finish();
  return {digest.begin(), digest.end()};
}

// Answers what a test says, and remembers what it was asked. One call at a time.
class FakeContexts final : public v1::Contexts::Service {
 public:
  using Writer = grpc::ServerWriter<v1::CreateContextResponse>;

  v1::CreateContextRequest create;
  v1::AppendContextRequest append;
  v1::ForkContextRequest fork;
  v1::GetContextRequest get;
  v1::RenameContextRequest rename;
  v1::PinContextRequest pin;
  v1::DeleteContextRequest remove;
  std::vector<v1::ListContextsRequest> lists;
  std::vector<v1::ExportContextRequest> exports;
  std::vector<v1::ImportContextRequest> imports;

  grpc::Status status;  // of every call but List, Export and Import
  v1::Context context;  // the answer to those that have one
  v1::Usage usage;
  bool with_context = true;                               // in the last response of Create and Append
  std::map<std::string, v1::ListContextsResponse> pages;  // by the page token

  // What Export sends, in pieces of so many bytes.
  std::string file;
  std::string etag = "v1";
  size_t piece_bytes = 1 << 20;
  std::string sha256;               // by default that of `file`
  uint64_t file_bytes_claimed = 0;  // by default the size of `file`
  std::deque<size_t> breaks;        // each call breaks off after so many pieces, UNAVAILABLE; after the last, none does
  // What Import has taken, and what it answers before it takes the bytes of a call, or nothing.
  std::string received;
  std::string upload;
  std::function<grpc::Status(const v1::ImportContextRequest&)> before_import;
  std::function<grpc::Status(const v1::ImportContextRequest&)> after_import;

 private:
  grpc::Status Create(grpc::ServerContext*, const v1::CreateContextRequest* request, Writer* writer) override {
    create = *request;
    return Answer(writer);
  }
  grpc::Status Append(grpc::ServerContext*, const v1::AppendContextRequest* request, Writer* writer) override {
    append = *request;
    return Answer(writer);
  }
  grpc::Status Answer(Writer* writer) {
    v1::CreateContextResponse response;
    response.set_request_id("r1");
    response.mutable_progress()->set_prompt_tokens(usage.prompt_tokens());
    writer->Write(response);
    response.Clear();
    if (with_context) *response.mutable_context() = context;
    *response.mutable_usage() = usage;
    if (status.ok()) writer->Write(response);
    return status;
  }

  grpc::Status Fork(grpc::ServerContext*, const v1::ForkContextRequest* request, v1::Context* response) override {
    fork = *request;
    *response = context;
    return status;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetContextRequest* request, v1::Context* response) override {
    get = *request;
    *response = context;
    return status;
  }
  grpc::Status Rename(grpc::ServerContext*, const v1::RenameContextRequest* request, v1::Context* response) override {
    rename = *request;
    *response = context;
    return status;
  }
  grpc::Status Pin(grpc::ServerContext*, const v1::PinContextRequest* request, v1::Context* response) override {
    pin = *request;
    *response = context;
    return status;
  }
  grpc::Status Delete(grpc::ServerContext*, const v1::DeleteContextRequest* request,
                      v1::DeleteContextResponse*) override {
    remove = *request;
    return status;
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListContextsRequest* request,
                    v1::ListContextsResponse* response) override {
    lists.push_back(*request);
    *response = pages[request->page_token()];
    return grpc::Status::OK;
  }

  grpc::Status Export(grpc::ServerContext*, const v1::ExportContextRequest* request,
                      grpc::ServerWriter<v1::ExportContextResponse>* writer) override {
    exports.push_back(*request);
    if (!request->etag().empty() && request->etag() != etag) {
      return {grpc::StatusCode::ABORTED, "etag is \"" + request->etag() + "\", the context has \"" + etag + "\""};
    }
    if (!status.ok()) return status;
    size_t pieces_left = SIZE_MAX;
    if (!breaks.empty()) {
      pieces_left = breaks.front();
      breaks.pop_front();
    }
    v1::ExportContextResponse response;
    response.set_file_bytes(file_bytes_claimed != 0 ? file_bytes_claimed : file.size());
    response.set_etag(etag);
    for (size_t at = request->offset(); at < file.size(); at += piece_bytes) {
      if (pieces_left-- == 0) return {grpc::StatusCode::UNAVAILABLE, "the connection broke"};
      response.set_data(file.substr(at, piece_bytes));
      writer->Write(response);
      response.Clear();
    }
    response.set_sha256(sha256.empty() ? DigestOf(file) : sha256);
    writer->Write(response);
    return grpc::Status::OK;
  }

  grpc::Status Import(grpc::ServerContext*, const v1::ImportContextRequest* request,
                      v1::ImportContextResponse* response) override {
    imports.push_back(*request);
    imports.back().clear_data();
    if (request->upload() != upload) received.clear();
    upload = request->upload();
    if (!request->data().empty()) {
      if (before_import) {
        if (grpc::Status failed = before_import(*request); !failed.ok()) return failed;
      }
      if (request->offset() != received.size()) {
        return {grpc::StatusCode::INVALID_ARGUMENT, "offset is " + std::to_string(request->offset())};
      }
      received += request->data();
      if (after_import) {
        if (grpc::Status failed = after_import(*request); !failed.ok()) return failed;
      }
    }
    response->set_received(received.size());
    if (request->last()) {
      if (request->sha256() != DigestOf(received)) return {grpc::StatusCode::DATA_LOSS, "the SHA-256 is wrong"};
      *response->mutable_context() = context;
    }
    return grpc::Status::OK;
  }
};

class ContextCommandsTest : public RemoteCommandsTest {
 protected:
  void SetUp() override {
    more_services_ = {&contexts_};
    RemoteCommandsTest::SetUp();
    contexts_.context.set_name("book");
    contexts_.context.set_tokens(20'000);
    contexts_.context.set_etag("v7");
    contexts_.context.set_bytes(14'200'000);
    contexts_.context.set_place(v1::MEMORY);
    contexts_.usage.set_prompt_tokens(20'000);
    contexts_.usage.set_cached_tokens(3'000);
    contexts_.usage.set_prefill_seconds(2);
  }

  ContextOptions Options(const std::string& command) const {
    ContextOptions options;
    options.command = command;
    options.remote = remote_;
    return options;
  }
  CommandOutput Run(const ContextOptions& options) { return RunCommand(RunContext, options); }

  FakeContexts contexts_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TEST_UTIL_H_
