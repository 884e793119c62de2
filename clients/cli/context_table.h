// Contexts of a server as people read them.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_TABLE_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_TABLE_H_

#include <string>
#include <vector>

namespace goldfinch {

namespace v1 {
class Context;
class Usage;
}  // namespace v1

// One line for each. `now`: Unix time in seconds, as ages are shown.
std::string ContextsTable(const std::vector<v1::Context>& contexts, double now);
// All that is known of one.
std::string ContextDetails(const v1::Context& context, double now);
// "read 20,000 tokens in 2.00 s, 10,000 tokens/s; 3,000 more were kept already".
std::string ReadingLine(const v1::Usage& usage);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_TABLE_H_
