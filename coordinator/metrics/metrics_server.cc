#include "coordinator/metrics/metrics_server.h"

#include <chrono>
#include <exception>
#include <list>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/ip/v6_only.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/core/tcp_stream.hpp"
#include "boost/beast/http.hpp"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace goldfinch {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Answer = http::response<http::string_body>;

constexpr int kHeaderBytesMax = 8 << 10;
constexpr int kBacklog = 128;
// Before the next try after a failed accept, such as one for which there was no descriptor.
constexpr std::chrono::milliseconds kAcceptPause(100);
constexpr char kText[] = "text/plain; charset=utf-8";
constexpr char kPrometheusText[] = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace

class MetricsServer::Listener {
 public:
  Listener(MetricsServerOptions options, std::shared_ptr<prometheus::Registry> registry)
      : options_(std::move(options)), registry_(std::move(registry)) {}

  ~Listener() {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    error_code error;
    tcp::resolver resolver(context_);
    const std::string host = WithoutBrackets(options_.host);
    const auto found = resolver.resolve(host, std::to_string(options_.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (!error) {
      for (const auto& one : found) {
        error = Listen(one.endpoint());
        if (!error) break;
      }
    }
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("metrics: cannot listen on ", HostPort{host, options_.port}.ToString(), ": ", error.message()));
    }
    port_ = acceptor_.local_endpoint().port();
    Accept();
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  // Lives until its last asynchronous call has ended, which is soon after its stream is closed. It is in `all` unless
  // it was closed for a newer one.
  struct Connection {
    Connection(tcp::socket socket, std::list<Connection*>* all)
        : stream(std::move(socket)), all(all), place(all->insert(all->end(), this)) {
      parser.header_limit(kHeaderBytesMax);
    }
    ~Connection() {
      if (listed) all->erase(place);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    beast::tcp_stream stream;
    beast::flat_buffer buffer{kHeaderBytesMax};
    http::request_parser<http::empty_body> parser;
    Answer answer;
    std::list<Connection*>* const all;
    const std::list<Connection*>::iterator place;
    bool listed = true;
  };

  error_code Listen(const tcp::endpoint& endpoint) {
    error_code error;
    acceptor_ = tcp::acceptor(context_);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error && endpoint.protocol() == tcp::v6() && endpoint.address().is_unspecified()) {
      acceptor_.set_option(asio::ip::v6_only(false), error);
    }
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kBacklog, error);
    return error;
  }

  // A handler can throw when memory is short: that connection is lost, and the others go on.
  void Run() {
    while (!context_.stopped()) {
      try {
        context_.run();
      } catch (const std::exception&) {
        continue;
      }
    }
  }

  void Accept() {
    acceptor_.async_accept([this](const error_code& error, tcp::socket socket) {
      if (error) {
        retry_.expires_after(kAcceptPause);
        retry_.async_wait([this](const error_code&) { Accept(); });
        return;
      }
      Accept();
      Serve(std::move(socket));
    });
  }

  void Serve(tcp::socket socket) {
    if (static_cast<int>(connections_.size()) >= options_.connections_max) {
      Connection& oldest = *connections_.front();
      connections_.pop_front();
      oldest.listed = false;
      oldest.stream.close();
    }
    const auto connection = std::make_shared<Connection>(std::move(socket), &connections_);
    connection->stream.expires_after(Timeout());
    http::async_read_header(connection->stream, connection->buffer, connection->parser,
                            [this, connection](const error_code& error, size_t) {
                              if (!error) Reply(connection);
                            });
  }

  void Reply(const std::shared_ptr<Connection>& connection) {
    connection->answer = AnswerTo(connection->parser.get());
    connection->answer.keep_alive(false);
    connection->answer.prepare_payload();
    if (connection->parser.get().method() == http::verb::head) connection->answer.body().clear();
    connection->stream.expires_after(Timeout());
    http::async_write(connection->stream, connection->answer, [connection](const error_code&, size_t) {
      error_code ignored;
      connection->stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
    });
  }

  Answer AnswerTo(const http::request<http::empty_body>& request) const {
    Answer answer(http::status::ok, request.version());
    answer.set(http::field::content_type, kText);
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      answer.result(http::status::method_not_allowed);
      answer.set(http::field::allow, "GET, HEAD");
      return answer;
    }
    const std::string_view target(request.target().data(), request.target().size());
    const std::string_view path = target.substr(0, target.find('?'));
    const auto probe = [&](bool yes, const char* no) {
      if (!yes) answer.result(http::status::service_unavailable);
      answer.body() = yes ? "ok\n" : no;
    };
    if (path == "/metrics") {
      answer.set(http::field::content_type, kPrometheusText);
      answer.body() = prometheus::TextSerializer().Serialize(registry_->Collect());
    } else if (path == "/livez") {
      probe(true, "");
    } else if (path == "/readyz") {
      probe(options_.ready(), "no group of workers is ready, or the server is ending\n");
    } else if (path == "/startupz") {
      probe(options_.started(), "no group of workers has been ready yet\n");
    } else {
      answer.result(http::status::not_found);
      answer.body() = "there are /metrics, /livez, /readyz and /startupz\n";
    }
    return answer;
  }

  std::chrono::steady_clock::duration Timeout() const {
    return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(options_.timeout_seconds));
  }

  const MetricsServerOptions options_;
  const std::shared_ptr<prometheus::Registry> registry_;
  int port_ = 0;
  std::list<Connection*> connections_;  // the oldest first; for the server's thread only

  asio::io_context context_{1};
  tcp::acceptor acceptor_{context_};
  asio::steady_timer retry_{context_};
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const MetricsServerOptions& options,
                                                                    const Metrics& metrics) {
  auto listener = std::make_unique<Listener>(options, metrics.registry());
  if (const absl::Status status = listener->Start(); !status.ok()) return status;
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(listener)));
}

MetricsServer::MetricsServer(std::unique_ptr<Listener> listener) : listener_(std::move(listener)) {}

MetricsServer::~MetricsServer() = default;

int MetricsServer::port() const { return listener_->port(); }

}  // namespace goldfinch
