// Queues of work on a device, and marks in them: what orders work beside the ops of a back end, such as copies between
// stages. On the CPU everything that is queued is done at once.
#ifndef GOLDFINCH_KERNELS_QUEUE_H_
#define GOLDFINCH_KERNELS_QUEUE_H_

#include <cstdint>
#include <cstring>
#include <memory>

namespace goldfinch {

// A place in a queue. It is reached when everything that was queued before it is done, or never will be: after a fault
// of the device (ComputeDevice::status) every mark is reached. Any thread may use it, and it may outlive its queue.
class Mark {
 public:
  virtual ~Mark() = default;
  // Whether the place is reached; does not wait.
  virtual bool reached() const = 0;
  virtual void Wait() const = 0;
};

// One thread at a time may use a queue.
class Queue {
 public:
  virtual ~Queue() = default;

  // The place after everything that has been queued so far.
  virtual std::shared_ptr<const Mark> Record() = 0;
  // What is queued from now on starts after the mark is reached. The mark may be of any queue of this process, and may
  // be destroyed after this call.
  virtual void WaitFor(const Mark& mark) = 0;
  // Copies between memory of back ends of this process and staging memory. The host does not wait: both sides must stay
  // valid until a mark after the copy is reached.
  virtual void Copy(const void* from, void* to, int64_t bytes) = 0;
  // The queue's own handle, for libraries that queue work themselves (NCCL); null if there is none. It also makes the
  // queue's device the current one for what the calling thread asks of such libraries next.
  virtual void* stream() = 0;
};

// The queue of a device that does everything at once: the CPU.
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
