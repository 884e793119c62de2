#include "coordinator/metrics/metrics_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/resolve.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

// A plain TCP connection to a port of this machine.
class Client {
 public:
  explicit Client(int port, const char* host = "127.0.0.1") {
    const auto found = ResolveHost(host, port, AI_NUMERICHOST);
    if (!found.ok()) return;
    fd_ = socket((*found)->ai_family, SOCK_STREAM, 0);
    connected_ = connect(fd_, (*found)->ai_addr, (*found)->ai_addrlen) == 0;
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  // False once the server has closed the connection and that has been noticed.
  bool Send(const std::string& bytes) {
    return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  // Everything that comes before the server closes the connection.
  std::string ReadToEnd() {
    std::string answer;
    char buffer[4096];
    for (ssize_t n = 0; (n = recv(fd_, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    return answer;
  }

 private:
  int fd_ = -1;
  bool connected_ = false;
};

std::string Request(int port, const std::string& line, const char* host = "127.0.0.1") {
  Client client(port, host);
  EXPECT_TRUE(client.connected());
  EXPECT_TRUE(client.Send(line + "\r\nHost: localhost\r\n\r\n"));
  return client.ReadToEnd();
}

std::string Get(int port, const std::string& path) { return Request(port, absl::StrCat("GET ", path, " HTTP/1.1")); }

class MetricsServerTest : public testing::Test {
 protected:
  MetricsServer& Start() {
    absl::StatusOr<std::unique_ptr<MetricsServer>> server = MetricsServer::Start(options_, metrics_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    return *server_;
  }

  Metrics metrics_{"m"};
  MetricsServerOptions options_;
  std::unique_ptr<MetricsServer> server_;
};

TEST_F(MetricsServerTest, ServesWhatIsCounted) {
  MetricsServer& server = Start();
  metrics_.CountStep(1, 1);
  const std::string answer = Get(server.port(), "/metrics?x=1");
  EXPECT_TRUE(absl::StartsWith(answer, "HTTP/1.1 200 OK\r\n")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "Content-Type: text/plain; version=0.0.4")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "goldfinch_steps_total{model_name=\"m\"} 1\n")) << answer;
  const std::string head = Request(server.port(), "HEAD /metrics HTTP/1.1");
  EXPECT_TRUE(absl::StartsWith(head, "HTTP/1.1 200 OK\r\n")) << head;
  EXPECT_TRUE(absl::EndsWith(head, "\r\n\r\n")) << head;
}

TEST_F(MetricsServerTest, ProbesTellTheTruth) {
  std::atomic<bool> started = false, ready = false;
  options_.started = [&] { return started.load(); };
  options_.ready = [&] { return ready.load(); };
  const int port = Start().port();
  const auto code = [&](const char* path) { return Get(port, path).substr(9, 3); };
  EXPECT_EQ(code("/livez"), "200");
  EXPECT_EQ(code("/startupz"), "503");
  EXPECT_EQ(code("/readyz"), "503");
  started = ready = true;
  EXPECT_EQ(code("/startupz"), "200");
  EXPECT_EQ(code("/readyz"), "200");
  ready = false;
  EXPECT_EQ(code("/startupz"), "200");
  EXPECT_EQ(code("/readyz"), "503");
  EXPECT_EQ(code("/livez"), "200");
}

TEST_F(MetricsServerTest, RefusesEverythingElse) {
  const int port = Start().port();
  EXPECT_EQ(Get(port, "/health").substr(9, 3), "404");
  EXPECT_EQ(Request(port, "POST /metrics HTTP/1.1").substr(9, 3), "405");
  EXPECT_EQ(Request(port, "nonsense"), "");
  EXPECT_EQ(Request(port, "GET /" + std::string(20000, 'x') + " HTTP/1.1").substr(0, 15), "");
}

TEST_F(MetricsServerTest, IdleAndTricklingConnectionsBlockNobody) {
  options_.timeout_seconds = 600;
  const int port = Start().port();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<Client>(port));
    ASSERT_TRUE(clients.back()->connected());
  }
  for (const char c : std::string("GET /metrics")) {
    for (size_t i = 0; i < clients.size(); i += 2) EXPECT_TRUE(clients[i]->Send(std::string(1, c)));
    EXPECT_TRUE(absl::StrContains(Get(port, "/metrics"), "goldfinch_steps_total"));
  }
}

TEST_F(MetricsServerTest, AClientThatTricklesIsCutOff) {
  options_.timeout_seconds = 0.2;
  const int port = Start().port();
  Client idle(port);
  Client trickling(port);
  ASSERT_TRUE(trickling.Send("GET /metrics HTTP/1.1\r\nX: "));
  while (trickling.Send("x")) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(idle.ReadToEnd(), "");
}

TEST_F(MetricsServerTest, ANewConnectionClosesTheOldestWhereThereAreTooMany) {
  options_.timeout_seconds = 600;
  options_.connections_max = 3;
  const int port = Start().port();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) clients.push_back(std::make_unique<Client>(port));
  EXPECT_TRUE(absl::StrContains(Get(port, "/metrics"), "goldfinch_steps_total"));
  for (int i = 0; i < 7; ++i) EXPECT_EQ(clients[i]->ReadToEnd(), "");
  EXPECT_TRUE(absl::StrContains(Get(port, "/livez"), "ok"));
}

TEST_F(MetricsServerTest, ListensOnIpv6AndOnBoth) {
  options_.host = "::1";
  absl::StatusOr<std::unique_ptr<MetricsServer>> server = MetricsServer::Start(options_, metrics_);
  if (!server.ok()) GTEST_SKIP() << "this machine has no IPv6: " << server.status();
  EXPECT_TRUE(absl::StrContains(Request((*server)->port(), "GET /livez HTTP/1.1", "::1"), "200 OK"));
  for (const char* host : {"::", "[::]"}) {
    options_.host = host;
    const int port = Start().port();
    EXPECT_TRUE(absl::StrContains(Request(port, "GET /livez HTTP/1.1", "::1"), "200 OK")) << host;
    EXPECT_TRUE(absl::StrContains(Request(port, "GET /livez HTTP/1.1", "127.0.0.1"), "200 OK")) << host;
  }
}

TEST_F(MetricsServerTest, APortThatIsTakenIsAnErrorThatNamesIt) {
  options_.port = Start().port();
  const absl::Status status = MetricsServer::Start(options_, metrics_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat("127.0.0.1:", options_.port))) << status;
}

TEST_F(MetricsServerTest, ANameThatIsNoneIsAnError) {
  options_.host = "no such host";
  EXPECT_EQ(MetricsServer::Start(options_, metrics_).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace goldfinch
