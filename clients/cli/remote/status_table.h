// How `goldfinch status` shows the state of a server.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_STATUS_TABLE_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_STATUS_TABLE_H_

#include <string>

#include "nlohmann/json_fwd.hpp"

namespace google::protobuf {
class Message;
}  // namespace google::protobuf

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
class GetModelInfoResponse;
}  // namespace v1

// `model` is null while no worker has described the model. Rates and shares of time are those since `before`, an
// earlier look at the same server; without it, or where counters have started again since then, those since the start.
std::string StatusTable(const v1::GetModelInfoResponse* model, const v1::GetClusterInfoResponse& now,
                        const v1::GetClusterInfoResponse* before);

// All fields by name, those that are not set too: null where the message tells that from 0. Numbers are numbers, enum
// values are by name.
nlohmann::json MessageJson(const google::protobuf::Message& message);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_STATUS_TABLE_H_
