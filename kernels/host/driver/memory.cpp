// memory.cpp: the GPU's memory, pinned and registered memory of the host, and copies.
#include "driver.h"

#include <cstdlib>
#include <cstring>

using namespace standin;

namespace {

std::mutex pinned_mutex;
std::map<uintptr_t, size_t>& pinned() {
  static auto* all = new std::map<uintptr_t, size_t>;
  return *all;
}

constexpr size_t ALIGNMENT = 256;

}  // namespace

bool standin::is_pinned(const void* pointer, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard lock(pinned_mutex);
  auto next = pinned().upper_bound(address);
  if (next == pinned().begin()) return false;
  --next;
  return address + bytes <= next->first + next->second;
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
  return CUDA_SUCCESS;
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

ROTA_DRIVER_CALL cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  Device* device;
  if (CUresult result = current(device)) return result;
  std::lock_guard lock(device->mutex);
  *total = device->memory_total;
  *free_bytes = device->memory_total - device->memory_used;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (posix_memalign(memory, 4096, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::lock_guard lock(pinned_mutex);
  pinned()[reinterpret_cast<uintptr_t>(*memory)] = bytes;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemFreeHost(void* memory) {
  std::lock_guard lock(pinned_mutex);
  if (!pinned().erase(reinterpret_cast<uintptr_t>(memory))) return CUDA_ERROR_INVALID_VALUE;
  free(memory);
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostRegister_v2(void* memory, size_t bytes, unsigned) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (!memory || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  std::lock_guard lock(pinned_mutex);
  for (auto& range : pinned())
    if (begin < range.first + range.second && range.first < begin + bytes) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  pinned()[begin] = bytes;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuMemHostUnregister(void* memory) {
  std::lock_guard lock(pinned_mutex);
  return pinned().erase(reinterpret_cast<uintptr_t>(memory)) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

// From pageable memory the bytes are taken before the call returns, as a driver stages them.
ROTA_DRIVER_CALL cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!from || !device->owns(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  void* target = reinterpret_cast<void*>(to);
  count(is_pinned(from, bytes) ? "upload" : "staged upload");
  if (is_pinned(from, bytes)) {
    stream->push({Kind::COPY_IN, "copy in", bytes, copy_time(bytes), [=] { return memcpy(target, from, bytes), CUDA_SUCCESS; }});
  } else {
    const char* first = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
    const auto work = [=] { return memcpy(target, staged->data(), bytes), CUDA_SUCCESS; };
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
  count(is_pinned(to, bytes) ? "download" : "staged download");
  stream->push({Kind::COPY_OUT, "copy out", bytes, copy_time(bytes), [=] { return memcpy(to, source, bytes), CUDA_SUCCESS; }});
  if (!is_pinned(to, bytes)) stream->wait();
  return device->error;
}

ROTA_DRIVER_CALL cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!device->owns(to, bytes) || !device->owns(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
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
