// Queues of work on a device and places in them: what orders work that goes on beside the ops of a back end. The CPU
// does what is queued at once.
#ifndef GOLDFINCH_KERNELS_QUEUE_H_
#define GOLDFINCH_KERNELS_QUEUE_H_

#include <cstdint>
#include <cstring>
#include <memory>

namespace goldfinch {

// A place in a queue. It is reached when all that was queued before it is done, or will never be: after a fault of the
// device (Backend::status) every mark is reached. Thread-safe; may outlive its queue.
class Mark {
 public:
  virtual ~Mark() = default;
  // Does not wait.
  virtual bool reached() const = 0;
  virtual void Wait() const = 0;
};

// One thread at a time.
class Queue {
 public:
  virtual ~Queue() = default;

  // The place after all that is queued so far.
  virtual std::shared_ptr<const Mark> Record() = 0;
  // What is queued from now on starts after the mark, which may be of any queue of this process. The mark may go.
  virtual void WaitFor(const Mark& mark) = 0;
  // Between memory of back ends of this process and staging memory. The host does not wait: what is copied must stay
  // until a mark after it is reached.
  virtual void Copy(const void* from, void* to, int64_t bytes) = 0;
  // For libraries that queue work themselves (NCCL); null where there are none. What the calling thread asks of them
  // next goes to the queue's device.
  virtual void* stream() = 0;
};

// Of a device that does everything at once: the CPU.
class HostQueue : public Queue {
 public:
  std::shared_ptr<const Mark> Record() override { return mark_; }
  void WaitFor(const Mark& mark) override { mark.Wait(); }
  void Copy(const void* from, void* to, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void* stream() override { return nullptr; }

 private:
  class Reached : public Mark {
   public:
    bool reached() const override { return true; }
    void Wait() const override {}
  };
  const std::shared_ptr<const Mark> mark_ = std::make_shared<Reached>();
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_QUEUE_H_
