// Contexts of a server as people read them.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TABLE_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TABLE_H_

#include <string>
#include <vector>

namespace goldfinch {

namespace v1 {
class Context;
class Usage;
}  // namespace v1

// A table with one line per context. `now` is the Unix time in seconds, from which ages are counted.
std::string ContextsTable(const std::vector<v1::Context>& contexts, double now);
// All fields of one context.
std::string ContextDetails(const v1::Context& context, double now);
// "read 20,000 tokens in 2.00 s, 10,000 tokens/s; 3,000 more were kept already".
std::string ReadingLine(const v1::Usage& usage);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_CONTEXT_TABLE_H_
