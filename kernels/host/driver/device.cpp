// device.cpp: GPUs, contexts, and the names of errors.
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {

thread_local Device* current_device = nullptr;
thread_local unsigned captures_of_this_thread = 0;

std::vector<std::unique_ptr<Device>>& devices() {
  // Never destroyed: streams' threads may outlive static destructors.
  static auto* all = [] {
    auto* made = new std::vector<std::unique_ptr<Device>>;
    const int count = atoi(setting("ROTA_STANDIN_GPUS", "1"));
    const size_t bytes = static_cast<size_t>(atoll(setting("ROTA_STANDIN_MEMORY_MB", "16384"))) << 20;
    for (int ordinal = 0; ordinal < count; ordinal++) {
      made->push_back(std::make_unique<Device>());
      made->back()->ordinal = ordinal;
      made->back()->memory_total = bytes;
    }
    return made;
  }();
  return *all;
}

CUresult current(Device*& device) {
  device = current_device;
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  if (is_lost(device->ordinal)) device->error = CUDA_ERROR_UNKNOWN;
  if (device->error != CUDA_SUCCESS) return device->error;
  std::lock_guard lock(device->mutex);
  return device->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

bool Device::owns(CUdeviceptr address, size_t bytes) {
  std::lock_guard lock(mutex);
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return false;
  --next;
  return address + bytes <= next->first + next->second;
}

bool Device::forget(void* handle) {
  std::shared_ptr<void> last;  // Destroyed outside of the lock: a stream waits for its thread.
  std::lock_guard lock(mutex);
  if (!handles.erase(handle)) return false;
  for (size_t at = 0; at < kept.size(); at++) {
    if (kept[at].get() != handle) continue;
    last = std::move(kept[at]);
    kept.erase(kept.begin() + static_cast<long>(at));
    break;
  }
  return true;
}

namespace {

Device* device_of(CUdevice ordinal) {
  const bool there = ordinal >= 0 && static_cast<size_t>(ordinal) < devices().size();
  return there ? devices()[static_cast<size_t>(ordinal)].get() : nullptr;
}

void empty(Device* device) {
  std::vector<std::shared_ptr<void>> objects;
  {
    std::lock_guard lock(device->mutex);
    objects.swap(device->kept);
    device->handles.clear();
  }
  objects.clear();  // Streams end what they do first.
  unpin(device);
  std::lock_guard lock(device->mutex);
  for (auto& allocation : device->allocations) free(reinterpret_cast<void*>(allocation.first));
  device->allocations.clear();
  device->memory_used = 0;
  device->active = false;
  device->error = CUDA_SUCCESS;
}

struct Name { CUresult result; const char* name; };
#define NAME(code) {code, #code}
const Name NAMES[] = {
    NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY), NAME(CUDA_ERROR_NOT_INITIALIZED),
    NAME(CUDA_ERROR_DEVICE_UNAVAILABLE), NAME(CUDA_ERROR_NO_DEVICE), NAME(CUDA_ERROR_INVALID_DEVICE), NAME(CUDA_ERROR_INVALID_IMAGE),
    NAME(CUDA_ERROR_INVALID_CONTEXT), NAME(CUDA_ERROR_INVALID_HANDLE), NAME(CUDA_ERROR_NOT_FOUND), NAME(CUDA_ERROR_NOT_READY),
    NAME(CUDA_ERROR_CONTEXT_IS_DESTROYED), NAME(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED),
    NAME(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED), NAME(CUDA_ERROR_LAUNCH_FAILED), NAME(CUDA_ERROR_NOT_SUPPORTED),
    NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED), NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), NAME(CUDA_ERROR_UNKNOWN),
};

}  // namespace
}  // namespace standin

using namespace standin;

ROTA_DRIVER_CALL cuInit(unsigned flags) {
  if (flags != 0 || !settings_are_sound()) return CUDA_ERROR_INVALID_VALUE;
  return devices().empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuGetErrorName(CUresult result, const char** name) {
  *name = nullptr;
  for (const Name& known : NAMES)
    if (known.result == result) *name = known.name;
  return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

ROTA_DRIVER_CALL cuGetErrorString(CUresult result, const char** text) { return cuGetErrorName(result, text); }

ROTA_DRIVER_CALL cuDeviceGetCount(int* count) {
  *count = static_cast<int>(devices().size());
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDeviceGet(CUdevice* device, int ordinal) {
  if (!device_of(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDeviceGetName(char* name, int bytes, CUdevice ordinal) {
  if (!device_of(ordinal) || bytes < 1) return CUDA_ERROR_INVALID_VALUE;
  if (limits()) snprintf(name, static_cast<size_t>(bytes), "Stand-in GPU, times of %s", limits()->full_name);
  else snprintf(name, static_cast<size_t>(bytes), "Stand-in GPU");
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDeviceTotalMem_v2(size_t* bytes, CUdevice ordinal) {
  Device* device = device_of(ordinal);
  if (!device) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = device->memory_total;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice ordinal) {
  if (!device_of(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  int major = 9, minor = 0;
  sscanf(setting("ROTA_STANDIN_CC", "9.0"), "%d.%d", &major, &minor);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = limits() ? limits()->multiprocessors : 132; break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: *value = 0x10 + ordinal; break;
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = minor; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = atoi(setting("ROTA_STANDIN_POOLS", "1")); break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

// A context is its device.
ROTA_DRIVER_CALL cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice ordinal) {
  Device* device = device_of(ordinal);
  if (!device) return CUDA_ERROR_INVALID_DEVICE;
  if (is_lost(ordinal)) return CUDA_ERROR_UNKNOWN;
  std::lock_guard lock(device->mutex);
  device->holders++;
  device->active = true;
  *context = reinterpret_cast<CUcontext>(device);
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  Device* device = device_of(ordinal);
  if (!device) return CUDA_ERROR_INVALID_DEVICE;
  {
    std::lock_guard lock(device->mutex);
    if (device->holders == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--device->holders > 0) return CUDA_SUCCESS;
  }
  empty(device);
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
  Device* device = device_of(ordinal);
  if (!device) return CUDA_ERROR_INVALID_DEVICE;
  if (is_lost(ordinal)) return CUDA_ERROR_UNKNOWN;
  empty(device);
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuCtxSetCurrent(CUcontext context) {
  Device* device = reinterpret_cast<Device*>(context);
  for (auto& known : devices())
    if (known.get() == device || !device) {
      current_device = device;
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_CONTEXT;
}

ROTA_DRIVER_CALL cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(current_device);
  return CUDA_SUCCESS;
}
