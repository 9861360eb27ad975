// launch.cpp: modules and kernels; a launch runs the kernel that was compiled for the host under the same name.
#include "driver.h"

#include "../host.h"

#include <cstring>

using namespace standin;

// An image for this driver alone, for programs that were built without nvcc.
static const char HOST_IMAGE[] = "rota host kernels";

ROTA_DRIVER_CALL cuModuleLoadData(CUmodule* module, const void* image) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (!image) return CUDA_ERROR_INVALID_VALUE;
  const unsigned char* bytes = static_cast<const unsigned char*>(image);
  const bool fat_binary = memcmp(bytes, "\x50\xed\x55\xba", 4) == 0, elf = memcmp(bytes, "\x7f" "ELF", 4) == 0;
  const bool host = memcmp(bytes, HOST_IMAGE, sizeof HOST_IMAGE - 1) == 0;
  if (!fat_binary && !elf && !host) return CUDA_ERROR_INVALID_IMAGE;
  *module = reinterpret_cast<CUmodule>(device->make<Module>());
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuModuleUnload(CUmodule module) {
  Device* device = current_device;
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  return device->forget(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

ROTA_DRIVER_CALL cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Device* device;
  if (CUresult result = current(device)) return result;
  if (!device->find<Module>(module)) return CUDA_ERROR_INVALID_HANDLE;
  const RotaHostKernel* kernel = rota_host_find(name);
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  *function = reinterpret_cast<CUfunction>(device->make<Function>(Function{kernel->name, kernel->params_bytes, kernel->threads_max}));
  return CUDA_SUCCESS;
}

namespace {

// The parameter struct's bytes, from either of the two ways in which they may be given; empty when they do not fit the kernel.
std::vector<char> parameters(const Function& function, void** list, void** extra) {
  const void* bytes = list ? list[0] : nullptr;
  if (extra) {
    size_t size = 0;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
      if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) bytes = extra[1];
      if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t*>(extra[1]);
    }
    if (size != function.params_bytes) return {};
  }
  if (!bytes) return {};
  const char* first = static_cast<const char*>(bytes);
  return std::vector<char>(first, first + function.params_bytes);
}

}  // namespace

ROTA_DRIVER_CALL cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                unsigned shared_bytes, CUstream stream_handle, void** list, void** extra) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto stream = device->find<Stream>(stream_handle);
  auto function = device->find<Function>(handle);
  if (!stream || !function) return CUDA_ERROR_INVALID_HANDLE;
  const uint64_t threads = static_cast<uint64_t>(bx) * by * bz;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || gx > 0x7fffffff || !threads || threads > function->threads_max ||
      shared_bytes > 227 * 1024)
    return CUDA_ERROR_INVALID_VALUE;
  auto params = std::make_shared<std::vector<char>>(parameters(*function, list, extra));
  if (params->size() != function->params_bytes) return CUDA_ERROR_INVALID_VALUE;
  if (!captures_of_this_thread) count("launch");
  const auto work = [=] {
    const uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    if (fails_now("launch")) return complain(function->name + ": fails as it was told to"), CUDA_ERROR_LAUNCH_FAILED;
    char error[512];
    const char* name = function->name.c_str();
    if (rota_host_launch(name, grid, block, shared_bytes, params->data(), params->size(), error, sizeof error) == 0) return CUDA_SUCCESS;
    return complain(error), CUDA_ERROR_LAUNCH_FAILED;
  };
  const uint32_t grid[3] = {gx, gy, gz};
  stream->push({Kind::INSIDE, function->name, 0, kernel_time(function->name, grid, params->data(), params->size()), work});
  return CUDA_SUCCESS;
}
