// The limits of requests that protos/generate.proto and protos/contexts.proto document. That of a context's name is
// kContextTextBytesMax of coordinator/contexts/segment_key.h, as all who keep it have it.
#ifndef GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_
#define GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_

#include <cstdint>

namespace goldfinch {

inline constexpr int kSamplesMax = 64;
inline constexpr int kStopsMax = 64;
inline constexpr int kStopBytesMax = 1024;
inline constexpr int kStopIdsMax = 1024;
inline constexpr int kBiasesMax = 1024;
inline constexpr int kBansMax = 65536;
inline constexpr int kPriorityMax = 100;
inline constexpr int kRequestIdMax = 128;
inline constexpr int kContinuationsMax = 64;
inline constexpr int kBreakpointsMax = 16;
inline constexpr int kEtagBytesMax = 64;
inline constexpr double kExpireAfterSecondsMax = 1e9;
inline constexpr int kContextPageMax = 1000;
inline constexpr int kContextPageDefault = 100;
inline constexpr int64_t kContextIdsMax = 1'048'576;
inline constexpr int kUploadBytesMax = 64;

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_
