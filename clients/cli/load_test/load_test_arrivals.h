// Which client of a scenario sends when.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_ARRIVALS_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_ARRIVALS_H_

#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

#include "clients/cli/load_test/load_test_scenario.pb.h"
#include "clients/cli/load_test/load_test_schedule.h"

namespace goldfinch {

struct Arrival {
  int group = 0;  // index of the client's group
  int client = 0;
  int64_t number = 0;  // of all arrivals before it
  double seconds = 0;  // when it was to be sent
};

// The requests of client groups as a function of time. All times are seconds from the start of the run. Not
// thread-safe.
class Arrivals {
 public:
  // The groups as ReadScenario returns them, at least one of which is without until_others_end. `seed`: of the times of
  // groups with a rate.
  Arrivals(std::vector<scenario::ClientGroup> groups, uint64_t seed);

  // The next request that is to be sent by `now`; nullopt if there is none. It runs until Ended is called for it.
  std::optional<Arrival> Next(double now);
  // When the next request is to be sent; nullopt if that depends on the end of one that runs, or if the run is over.
  std::optional<double> next_seconds() const;
  // A request of this group and client has ended. After one that failed, the client waits for a moment at least, so
  // that a server that refuses everything is not called without pause.
  void Ended(int group, int client, bool failed, double now);
  // Whether all groups without until_others_end have ended. Then no further requests come.
  bool over() const { return open_ == 0; }

 private:
  struct Due {
    double seconds;
    int64_t order;  // among those of equal times
    int group;
    int client;

    bool operator>(const Due& other) const {
      return seconds != other.seconds ? seconds > other.seconds : order > other.order;
    }
  };

  struct Group {
    scenario::ClientGroup settings;
    std::vector<int64_t> due_count;  // [clients] requests so far, due ones included
    int64_t pending = 0;             // requests that are due or run
  };

  void Push(double seconds, int group, int client);
  void Settle(int group);
  double RateGap(const Group& group);

  std::vector<Group> groups_;
  PortableRandom random_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  int64_t order_ = 0;
  int64_t number_ = 0;
  int open_ = 0;  // groups without until_others_end that have not ended
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_ARRIVALS_H_
