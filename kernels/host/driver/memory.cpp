// memory.cpp: the GPU's memory, pinned and registered memory of the host, and copies.
#include "driver.h"

#include <cstdlib>
#include <cstring>

using namespace standin;

namespace {

// Host memory that GPUs reach, by where it begins.
struct Pinned {
  size_t bytes;
  Device* device;      // whose context it was pinned in, and goes with when it is registered
  unsigned flags;
  bool registered;     // and not the driver's own
  // Copies that were given to a stream and are not done.
  std::shared_ptr<std::atomic<int>> copies = std::make_shared<std::atomic<int>>(0);
};

std::mutex pinned_mutex;
std::map<uintptr_t, Pinned>& pinned() {
  static auto* all = new std::map<uintptr_t, Pinned>;
  return *all;
}

// The range that has all of these bytes, if a context may use it. Under the mutex.
Pinned* find(Device* device, const void* pointer, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  auto next = pinned().upper_bound(address);
  if (next == pinned().begin()) return nullptr;
  Pinned& range = (--next)->second;
  const bool inside = address + bytes <= next->first + range.bytes;
  return inside && (range.device == device || (range.flags & PORTABLE)) ? &range : nullptr;
}

// A copy between the GPU and pinned memory, which may not be let go before it is done; null when the memory is not pinned.
std::shared_ptr<void> begin_copy(Device* device, const void* pointer, size_t bytes) {
  std::lock_guard lock(pinned_mutex);
  Pinned* range = find(device, pointer, bytes);
  if (!range) return nullptr;
  auto copies = range->copies;
  ++*copies;
  return std::shared_ptr<void>(copies.get(), [copies](void*) { --*copies; });
}

// As long as copies from the host are to take.
void take_time(size_t bytes) {
  static const size_t us_per_mb = static_cast<size_t>(atoll(setting("ROTA_STANDIN_COPY_US_PER_MB", "0")));
  const size_t us = us_per_mb * bytes >> 20;
  if (us) std::this_thread::sleep_for(std::chrono::microseconds(us));
}

constexpr size_t ALIGNMENT = 256;

}  // namespace

// What was registered in a context is no longer when that has ended.
void standin::unpin(Device* device) {
  std::lock_guard lock(pinned_mutex);
  for (auto range = pinned().begin(); range != pinned().end();)
    range = range->second.registered && range->second.device == device ? pinned().erase(range) : std::next(range);
}

ROTA_DRIVER_CALL cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (captures_of_this_thread) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (fails_now("alloc")) return CUDA_ERROR_OUT_OF_MEMORY;
  std::lock_guard lock(device->mutex);
  if (bytes > device->memory_total - device->memory_used) return CUDA_ERROR_OUT_OF_MEMORY;
  void* memory = nullptr;
  if (posix_memalign(&memory, ALIGNMENT, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(memory, 0xff, bytes);  // Not a number, whichever float it is read as.
  device->allocations[reinterpret_cast<uintptr_t>(memory)] = bytes;
  device->memory_used += bytes;
  *address = reinterpret_cast<uintptr_t>(memory);
  count("allocate");
  return CUDA_SUCCESS;
}

// The pool has whatever is free; the address is good at once, as one of a real pool is.
ROTA_DRIVER_CALL cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (!device->find<Stream>(handle)) return CUDA_ERROR_INVALID_HANDLE;
  return cuMemAlloc_v2(address, bytes);
}

ROTA_DRIVER_CALL cuMemFree_v2(CUdeviceptr address) {
  Device* device;
  if (CUresult result = current(device)) return result;
  std::lock_guard lock(device->mutex);
  auto found = device->allocations.find(address);
  if (found == device->allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  device->memory_used -= found->second;
  device->allocations.erase(found);
  free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}

// Nothing may be given to the GPU that uses it from now on; it is free once the stream has come to this.
ROTA_DRIVER_CALL cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  size_t bytes;
  {
    std::lock_guard lock(device->mutex);
    auto found = device->allocations.find(address);
    if (found == device->allocations.end()) return CUDA_ERROR_INVALID_VALUE;
    bytes = found->second;
    device->allocations.erase(found);
  }
  // Given back even where the stream never comes to it, in a context that is lost.
  std::shared_ptr<void> memory(reinterpret_cast<void*>(address), free);
  const auto work = [=] {
    std::lock_guard lock(device->mutex);
    device->memory_used -= bytes;
    return (void)memory, CUDA_SUCCESS;
  };
  uint64_t comes;
  return stream->push_point(0, work, &comes) ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

ROTA_DRIVER_CALL cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  Device* device;
  if (CUresult result = current(device)) return result;
  std::lock_guard lock(device->mutex);
  *total = device->memory_total;
  *free_bytes = device->memory_total - device->memory_used;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (bytes == 0 || flags & ~(PORTABLE | DEVICEMAP | WRITECOMBINED)) return CUDA_ERROR_INVALID_VALUE;
  if (posix_memalign(memory, 4096, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::lock_guard lock(pinned_mutex);
  pinned().insert({reinterpret_cast<uintptr_t>(*memory), Pinned{bytes, device, flags, false}});
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemFreeHost(void* memory) {
  std::lock_guard lock(pinned_mutex);
  auto found = pinned().find(reinterpret_cast<uintptr_t>(memory));
  if (found == pinned().end() || found->second.registered) return CUDA_ERROR_INVALID_VALUE;
  pinned().erase(found);
  free(memory);
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostRegister_v2(void* memory, size_t bytes, unsigned flags) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (!memory || bytes == 0 || flags & ~(PORTABLE | DEVICEMAP)) return CUDA_ERROR_INVALID_VALUE;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  std::lock_guard lock(pinned_mutex);
  for (auto& range : pinned())
    if (begin < range.first + range.second.bytes && range.first < begin + bytes) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  pinned().insert({begin, Pinned{bytes, device, flags, true}});
  count("register");
  return CUDA_SUCCESS;
}

// In whichever context, or in none. A real one does not say what it makes of copies that are under way: they are an error here.
ROTA_DRIVER_CALL cuMemHostUnregister(void* memory) {
  Device* device = current_device;
  if (device && device->error != CUDA_SUCCESS) return device->error;
  std::lock_guard lock(pinned_mutex);
  auto found = pinned().find(reinterpret_cast<uintptr_t>(memory));
  if (found == pinned().end() || !found->second.registered) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  if (*found->second.copies > 0) {
    complain("memory is unregistered that is being copied");
    for (auto& each : devices()) each->error = CUDA_ERROR_LAUNCH_FAILED;
  }
  pinned().erase(found);
  count("unregister");
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* memory, unsigned flags) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (flags != 0 || !memory) return CUDA_ERROR_INVALID_VALUE;
  std::lock_guard lock(pinned_mutex);
  const Pinned* range = find(device, memory, 1);
  if (!range || !(range->flags & DEVICEMAP)) return CUDA_ERROR_INVALID_VALUE;
  *address = reinterpret_cast<uintptr_t>(memory);
  return CUDA_SUCCESS;
}

// From pageable memory the bytes are taken before the call returns, as a driver stages them.
ROTA_DRIVER_CALL cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!from || !device->owns(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  void* target = reinterpret_cast<void*>(to);
  const auto copy = begin_copy(device, from, bytes);
  count(copy ? "upload" : "staged upload");
  const uint64_t number = trace_given(stream.get(), bytes);
  if (copy) {
    const auto work = [=] { return take_time(bytes), memcpy(target, from, bytes), (void)copy, trace_done(number), CUDA_SUCCESS; };
    stream->push({Kind::COPY_IN, "copy in", bytes, copy_time(bytes), work});
  } else {
    const char* first = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
    const auto work = [=] { return take_time(bytes), memcpy(target, staged->data(), bytes), trace_done(number), CUDA_SUCCESS; };
    stream->push({Kind::COPY_IN, "staged copy in", bytes, copy_time(bytes), work});
  }
  return CUDA_SUCCESS;
}

// To pageable memory the call returns when the bytes are there.
ROTA_DRIVER_CALL cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!to || !device->owns(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  const void* source = reinterpret_cast<const void*>(from);
  const auto copy = begin_copy(device, to, bytes);
  count(copy ? "download" : "staged download");
  const auto work = [=] { return memcpy(to, source, bytes), (void)copy, CUDA_SUCCESS; };
  stream->push({Kind::COPY_OUT, "copy out", bytes, copy_time(bytes), work});
  if (!copy) stream->wait();
  return device->error;
}

ROTA_DRIVER_CALL cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!device->owns(to, bytes) || !device->owns(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  count("copy");
  void* target = reinterpret_cast<void*>(to);
  const void* source = reinterpret_cast<const void*>(from);
  const auto work = [=] { return memcpy(target, source, bytes), CUDA_SUCCESS; };
  stream->push({Kind::INSIDE, "copy inside", bytes, inside_time(2 * bytes), work});
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!device->owns(at, bytes)) return CUDA_ERROR_INVALID_VALUE;
  const auto work = [=] { return memset(reinterpret_cast<void*>(at), value, bytes), CUDA_SUCCESS; };
  stream->push({Kind::INSIDE, "fill", bytes, inside_time(bytes), work});
  return CUDA_SUCCESS;
}
