// The version of Goldfinch Serving.
#ifndef GOLDFINCH_BASE_VERSION_H_
#define GOLDFINCH_BASE_VERSION_H_

namespace goldfinch {

// What the file VERSION in the root of the repository says, such as "0.1.0". The build generates the definition.
extern const char kVersion[];

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_VERSION_H_
