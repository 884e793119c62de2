// Tables of text.
#ifndef GOLDFINCH_CLIENTS_CLI_TERMINAL_COLUMNS_H_
#define GOLDFINCH_CLIENTS_CLI_TERMINAL_COLUMNS_H_

#include <string>
#include <vector>

namespace goldfinch {

// The rows in lines, their columns as wide as the widest cell and aligned to the left.
std::string Columns(const std::vector<std::vector<std::string>>& rows);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_TERMINAL_COLUMNS_H_
