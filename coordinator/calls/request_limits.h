// The limits of requests that protos/generate.proto documents.
#ifndef GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_
#define GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_

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

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_REQUEST_LIMITS_H_
