// Device memory and copies of the emulation. What is queued is done at once.
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {
namespace {

class EmulatedRuntime : public Runtime {
 public:
  const DeviceFacts& facts() const override { return facts_; }
  void Use() override {}
  int64_t FreeBytes() const override { return facts_.memory_bytes; }
  void* stream() const override { return nullptr; }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    void* memory = emulation::Allocate(static_cast<size_t>(bytes));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::shared_ptr<void>(memory, emulation::Free);
  }
  void CopyToDevice(const void* host, void* device, int64_t bytes) override { Move(host, device, bytes); }
  void CopyToHost(const void* device, void* host, int64_t bytes) override { Move(device, host, bytes); }
  void CopyOnDevice(const void* from, void* to, int64_t bytes) override { Move(from, to, bytes); }
  void Zero(void* device, int64_t bytes) override {
    emulation::Do([=] {
      const emulation::Access access;
      if (bytes > 0) std::memset(device, 0, static_cast<size_t>(bytes));
    });
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  absl::StatusOr<std::shared_ptr<void>> AllocatePinned(int64_t bytes, std::string_view /*purpose*/) override {
    return std::shared_ptr<char[]>(new char[static_cast<size_t>(bytes)]);
  }
  void QueueCopyToDevice(const void* pinned, void* device, int64_t bytes) override { Move(pinned, device, bytes); }
  std::unique_ptr<Fence> MakeFence() override { return std::make_unique<EmulatedFence>(); }
  void BeginCapture() override { emulation::BeginRecording(); }
  std::unique_ptr<Graph> EndCapture() override { return std::make_unique<EmulatedGraph>(emulation::EndRecording()); }

 private:
  struct EmulatedFence : Fence {
    void Set() override {}
    void Wait() override {}
  };
  class EmulatedGraph : public Graph {
   public:
    explicit EmulatedGraph(std::vector<std::function<void()>> work) : work_(std::move(work)) {}
    void Launch() override {
      const emulation::Access access;
      for (const std::function<void()>& part : work_) part();
    }

   private:
    const std::vector<std::function<void()>> work_;
  };

  static void Move(const void* from, void* to, int64_t bytes) {
    emulation::Do([=] {
      const emulation::Access access;
      if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    });
  }

  // Few multiprocessors, so that small tests split work as large ones do on a device.
  const DeviceFacts facts_{"emulated", 8, 0, 4, 227 << 10, int64_t{1} << 40};
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runtime>> OpenRuntime(int) { return std::make_unique<EmulatedRuntime>(); }

}  // namespace goldfinch::cuda
