#include "clients/cli/context/context_table.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "base/units.h"
#include "clients/cli/terminal/columns.h"
#include "protos/contexts.pb.h"

namespace goldfinch {
namespace {

constexpr int kSnapshotsShown = 32;

std::string Commas(uint64_t number) { return WithCommas(static_cast<int64_t>(number)); }
std::string Bytes(uint64_t bytes) { return HumanBytes(static_cast<int64_t>(bytes)); }

const char* PlaceName(v1::ContextPlace place) {
  switch (place) {
    case v1::NOWHERE:
      return "nowhere";
    case v1::MEMORY:
      return "memory";
    case v1::DISK:
      return "disk";
    case v1::MEMORY_AND_DISK:
      return "memory, disk";
    default:
      return "unknown";
  }
}

std::string Ago(double time, double now) { return absl::StrCat(HumanAge(now - time), " ago"); }

std::string Expiry(const v1::Context& context, double now) {
  if (!context.has_expires_unix_seconds()) return "never";
  if (context.pinned()) return "not while pinned";
  return absl::StrCat("in ", HumanAge(context.expires_unix_seconds() - now));
}

std::string Snapshots(const v1::Context& context) {
  if (context.snapshots().empty()) return "none";
  const int shown = std::min(kSnapshotsShown, context.snapshots_size());
  const auto append = [](std::string* text, uint64_t position) { text->append(Commas(position)); };
  const std::string text =
      absl::StrJoin(context.snapshots().begin(), context.snapshots().begin() + shown, "; ", append);
  const int more = context.snapshots_size() - shown;
  return more == 0 ? text : absl::StrCat(text, "; and ", more, " more");
}

}  // namespace

std::string ContextsTable(const std::vector<v1::Context>& contexts, double now) {
  std::vector<std::vector<std::string>> rows = {
      {"name", "tokens", "size", "shared", "kept in", "used", "expires", "pinned"}};
  for (const v1::Context& context : contexts) {
    rows.push_back({SafeText(context.name(), 512), Commas(context.tokens()), Bytes(context.bytes()),
                    Bytes(context.shared_bytes()), PlaceName(context.place()),
                    Ago(context.last_use_unix_seconds(), now), Expiry(context, now), context.pinned() ? "yes" : "no"});
  }
  return Columns(rows);
}

std::string ContextDetails(const v1::Context& context, double now) {
  std::string size = Bytes(context.bytes());
  if (context.shared_bytes() > 0) {
    absl::StrAppend(&size, ", ", Bytes(context.shared_bytes()), " of them shared with other contexts");
  }
  if (context.transformer_bytes() > 0) {
    absl::StrAppend(&size, "; a transformer of this shape would keep ", Bytes(context.transformer_bytes()));
  }
  std::string place = PlaceName(context.place());
  if (context.place() == v1::NOWHERE) place += ": the next request over it reads its tokens again";
  return Columns({{"name", SafeText(context.name())},
                  {"tokens", Commas(context.tokens())},
                  {"size", size},
                  {"kept in", place},
                  {"snapshots", Snapshots(context)},
                  {"created", Ago(context.created_unix_seconds(), now)},
                  {"used", Ago(context.last_use_unix_seconds(), now)},
                  {"expires", Expiry(context, now)},
                  {"pinned", context.pinned() ? "yes" : "no"},
                  {"etag", SafeText(context.etag())}});
}

std::string ReadingLine(const v1::Usage& usage) {
  const uint64_t read = usage.prompt_tokens() - std::min(usage.prompt_tokens(), usage.cached_tokens());
  std::string line = absl::StrFormat("read %s tokens in %.2f s", Commas(read), usage.prefill_seconds());
  if (usage.prefill_seconds() > 0) {
    absl::StrAppendFormat(&line, ", %.4g tokens/s", static_cast<double>(read) / usage.prefill_seconds());
  }
  if (usage.cached_tokens() > 0) {
    absl::StrAppend(&line, "; ", Commas(usage.cached_tokens()), " more were kept already");
  }
  return line;
}

}  // namespace goldfinch
