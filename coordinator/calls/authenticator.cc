#include "coordinator/calls/authenticator.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log_limiter.h"

namespace goldfinch {
namespace {

constexpr std::string_view kScheme = "Bearer ";
constexpr size_t kSweepMin =
    1024;  // clients without keys are swept when there are twice as many as after the last time

absl::StatusOr<std::string_view> KeyOf(std::optional<std::string_view> authorization) {
  if (!authorization) {
    return absl::UnauthenticatedError("no API key: the metadata `authorization: Bearer KEY` is missing");
  }
  if (!absl::EqualsIgnoreCase(std::string(authorization->substr(0, kScheme.size())), std::string(kScheme))) {
    return absl::UnauthenticatedError("the metadata `authorization` is not of the form `Bearer KEY`");
  }
  return authorization->substr(kScheme.size());
}

}  // namespace

std::string NetworkOf(const std::string& address) {
  in6_addr ip;
  if (inet_pton(AF_INET6, address.c_str(), &ip) != 1) return address;
  std::array<char, INET6_ADDRSTRLEN> text;
  if (IN6_IS_ADDR_V4MAPPED(&ip)) {
    inet_ntop(AF_INET, &ip.s6_addr[12], text.data(), text.size());
    return text.data();
  }
  std::memset(&ip.s6_addr[8], 0, 8);
  inet_ntop(AF_INET6, &ip, text.data(), text.size());
  return absl::StrCat(text.data(), "/64");
}

double WrongKeys::SecondsRefused(const std::string& network, double now) const {
  const auto found = buckets_.find(network);
  return found == buckets_.end() ? 0 : found->second.SecondsUntil(1, now);
}

void WrongKeys::Count(const std::string& network, double now) {
  if (buckets_.size() >= kAddressesMax && !buckets_.contains(network)) {
    // The half that has behaved best is forgotten.
    std::vector<double> tokens;
    for (const auto& [address, bucket] : buckets_) tokens.push_back(bucket.Tokens(now));
    const auto middle = tokens.begin() + tokens.size() / 2;
    std::nth_element(tokens.begin(), middle, tokens.end());
    std::erase_if(buckets_, [&](const auto& entry) { return entry.second.Tokens(now) >= *middle; });
  }
  buckets_.try_emplace(network, kPerMinute / 60.0, kPerMinute, now).first->second.Take(now);
}

absl::StatusOr<Caller> Authenticator::Identify(const std::string& peer, std::optional<std::string_view> authorization) {
  const std::string network = NetworkOf(peer);
  if (keys_ == nullptr) return Caller{ClientAt(network), peer, /*may_operate=*/true};
  const absl::StatusOr<std::string_view> key = KeyOf(authorization);
  if (!key.ok()) return key.status();
  absl::StatusOr<KeyRing::Holder> holder = keys_->Find(*key);
  if (holder.ok()) return Caller{std::move(holder->client), peer, holder->may_operate};
  const double now = SteadySeconds();
  const std::lock_guard<std::mutex> lock(mutex_);
  const double seconds = wrong_keys_.SecondsRefused(network, now);
  if (seconds > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("too many wrong API keys from ", network, ": try again in ", std::ceil(seconds), " s"));
  }
  wrong_keys_.Count(network, now);
  return holder.status();
}

std::shared_ptr<const Client> Authenticator::ClientAt(const std::string& network) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (anonymous_.size() > std::max(kSweepMin, 2 * anonymous_swept_)) {
    std::erase_if(anonymous_, [](const auto& entry) { return entry.second.expired(); });
    anonymous_swept_ = anonymous_.size();
  }
  std::weak_ptr<const Client>& known = anonymous_[network];
  std::shared_ptr<const Client> client = known.lock();
  if (client == nullptr) {
    client = std::make_shared<const Client>(Client{network, ClientLimits{}});
    known = client;
  }
  return client;
}

}  // namespace goldfinch
