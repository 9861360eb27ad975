// driver.h: the stand-in driver's state. One process, any number of pretended GPUs, kernels run on the host.
//
// What a GPU would do in order, a stream's thread does in order; so copies and launches are as asynchronous as they are there, and code that
// does not wait where it has to reads what is not written yet. What a driver refuses is refused here with its own codes. When the GPU
// would do it is another matter: clock.h.
#pragma once

#include "api.h"
#include "clock.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

namespace standin {

struct Device;

using Work = std::function<CUresult()>;

// Work in order, on a thread of its own.
struct Stream {
  explicit Stream(Device* device);
  ~Stream();
  // Captured, or done as one.
  void push(Operation operation);
  void push(const std::vector<Operation>& operations, Work work);
  // What takes no time on a GPU; returns when it comes, in virtual time. False: the stream captures.
  bool push_point(uint64_t not_before, Work work, uint64_t* comes);
  // Until all is done and the host's time has come to its end.
  void wait();

  Device* const device;
  const unsigned number;
  std::mutex mutex;
  std::condition_variable more, idle;
  // Each with the end that was settled.
  std::deque<std::pair<Work, uint64_t>> queue;
  uint64_t until = 0;  // when what it was given ends, in virtual time
  bool busy = false, stopping = false;
  // While it captures, operations are kept instead of done.
  bool capturing = false;
  std::vector<Operation> captured;
  std::thread thread;
};

// A point in a stream's work: the record that was made last, and the one that was come to last.
struct Event {
  std::mutex mutex;
  std::condition_variable reached;
  uint64_t recorded = 0, done = 0;
  // Of the last record: in virtual time, known at the call; without, real time, when it was come to.
  uint64_t time = 0;
};

struct Module { std::string text; };
struct Function { std::string name; size_t params_bytes; unsigned threads_max; };
struct Graph { std::vector<Operation> operations; };

// One pretended GPU and its primary context. Handles are valid while they are in `handles`; a reset empties it.
struct Device {
  int ordinal = 0;
  std::mutex mutex;
  unsigned holders = 0;
  bool active = false;
  // The first error that the context does not survive; every call returns it until the context is reset.
  std::atomic<CUresult> error{CUDA_SUCCESS};
  Engine engines[KINDS];  // guarded by the clock
  std::atomic<unsigned> streams{0};
  size_t memory_total = 0, memory_used = 0;
  std::map<uintptr_t, size_t> allocations;
  std::unordered_set<void*> handles;
  std::vector<std::shared_ptr<void>> kept;

  // Whether [address, address + bytes) is inside one allocation.
  bool owns(CUdeviceptr address, size_t bytes);
  template <class T, class... A>
  T* make(A&&... arguments) {
    auto made = std::make_shared<T>(std::forward<A>(arguments)...);
    std::lock_guard lock(mutex);
    handles.insert(made.get());
    kept.push_back(made);
    return made.get();
  }
  // The object, if the handle is one of this context's.
  template <class T>
  std::shared_ptr<T> find(void* handle) {
    std::lock_guard lock(mutex);
    if (!handles.count(handle)) return nullptr;
    for (auto& object : kept)
      if (object.get() == handle) return std::static_pointer_cast<T>(object);
    return nullptr;
  }
  bool forget(void* handle);
};

std::vector<std::unique_ptr<Device>>& devices();
// The calling thread's context, or why calls in it fail: none is current, or it is lost.
CUresult current(Device*& device);
extern thread_local Device* current_device;
extern thread_local unsigned captures_of_this_thread;

// Forgets what host memory was registered in the GPU's context.
void unpin(Device* device);

// Faults that a test plants; see faults.cpp.
bool fails_now(const char* what);
bool is_lost(int ordinal);
void complain(const std::string& what);

// What was asked for so far, for tests: "graph launch", "launch" (of one kernel), "upload", "staged upload", "download", "staged download",
// "copy", "register", "unregister", "capture", "allocate".
void count(const char* what);
// For tests: the order in which copies to a GPU were given and done; see trace.cpp.
uint64_t trace_given(const void* stream, size_t bytes);
void trace_done(uint64_t number);
const char* setting(const char* name, const char* otherwise);

}  // namespace standin

#define ROTA_DRIVER_CALL extern "C" __attribute__((visibility("default"))) CUresult
