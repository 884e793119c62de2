// The log of the commands that serve.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_SERVER_LOG_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_SERVER_LOG_H_

namespace goldfinch {

// From here on every line of the log, on standard error, has a time and a level, "2026-03-01T12:00:00.123+01:00 info
// ...", and names flags where the code below names fields (NameFlags). Control characters are escaped (SafeText).
void LogAsServer();

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_SERVER_LOG_H_
