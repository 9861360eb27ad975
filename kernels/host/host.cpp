// host.cpp: the C interface of host.h: finds a kernel, checks a launch, runs it.
#include "host.h"

#include "fibers.h"
#ifdef ROTA_CHECK
#include "check.h"
#endif

#include <cstdio>
#include <string>
#include <vector>

namespace rota_host {
namespace {

struct Registered {
  RotaHostKernel kernel;
  Body body;
};

// Filled by static initialisers of the kernels' files, so it has to exist before all of them.
std::vector<Registered>& registry() {
  static std::vector<Registered> kernels;
  return kernels;
}

const Registered* find(const char* name) {
  for (const Registered& entry : registry())
    if (strcmp(entry.kernel.name, name) == 0) return &entry;
  return nullptr;
}

constexpr uint64_t GRID_MAX[3] = {0x7fffffff, 65535, 65535}, BLOCK_MAX[3] = {1024, 1024, 64};

// What a driver would refuse. Empty when the launch may go on.
std::string refusal(const Registered* entry, const char* name, const uint32_t grid[3], const uint32_t block[3],
                    uint32_t shared_bytes, size_t params_bytes) {
  if (!entry) return std::string("no kernel is called ") + name;
  const std::string who = std::string(name) + ": ";
  if (params_bytes != entry->kernel.params_bytes)
    return who + "parameters have " + std::to_string(params_bytes) + " bytes, the kernel takes " +
           std::to_string(entry->kernel.params_bytes);
  for (int axis = 0; axis < 3; axis++) {
    if (grid[axis] < 1 || grid[axis] > GRID_MAX[axis])
      return who + "grid axis " + std::to_string(axis) + " is " + std::to_string(grid[axis]) + ", allowed are 1 to " +
             std::to_string(GRID_MAX[axis]);
    if (block[axis] < 1 || block[axis] > BLOCK_MAX[axis])
      return who + "block axis " + std::to_string(axis) + " is " + std::to_string(block[axis]) + ", allowed are 1 to " +
             std::to_string(BLOCK_MAX[axis]);
  }
  const uint64_t threads = static_cast<uint64_t>(block[0]) * block[1] * block[2];
  if (threads > entry->kernel.threads_max)
    return who + std::to_string(threads) + " threads in a block, its launch bound is " +
           std::to_string(entry->kernel.threads_max);
  if (shared_bytes > SHARED_MAX) return who + std::to_string(shared_bytes) + " bytes of dynamic shared memory";
  return {};
}

int report(const std::string& message, char* error, size_t error_bytes) {
  if (message.empty()) return 0;
  if (error && error_bytes) snprintf(error, error_bytes, "%s", message.c_str());
  return 1;
}

}  // namespace

Entry::Entry(const char* name, size_t params_bytes, unsigned threads_max, Body body) {
  registry().push_back({{name, params_bytes, threads_max}, body});
}

}  // namespace rota_host

using namespace rota_host;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const RotaHostKernel* rota_host_find(const char* name) {
  const Registered* entry = find(name);
  return entry ? &entry->kernel : nullptr;
}

EXPORTED size_t rota_host_kernel_count(void) { return registry().size(); }

EXPORTED const RotaHostKernel* rota_host_kernel(size_t index) {
  return index < registry().size() ? &registry()[index].kernel : nullptr;
}

EXPORTED int rota_host_launch_checked(const char* name, const uint32_t grid[3], const uint32_t block[3],
                                      uint32_t shared_bytes, const void* params, size_t params_bytes,
                                      const RotaHostCheck* check, char* error, size_t error_bytes) {
  const Registered* entry = find(name);
  std::string wrong = refusal(entry, name, grid, block, shared_bytes, params_bytes);
  if (!wrong.empty()) return report(wrong, error, error_bytes);
  Order order = static_cast<Order>(check->order);
#ifdef ROTA_CHECK
  if (order == Order::Any) order = Order::Forward;
  const Checking checking(*check, params, params_bytes);
#endif
  const Grid launch{{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, entry->body, params, order, check->seed};
  wrong = run(launch);
  if (!wrong.empty()) wrong = std::string(name) + ": " + wrong;
  return report(wrong, error, error_bytes);
}

EXPORTED int rota_host_launch(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                              const void* params, size_t params_bytes, char* error, size_t error_bytes) {
  RotaHostCheck check{};
  check.order = ROTA_HOST_ANY;
  return rota_host_launch_checked(name, grid, block, shared_bytes, params, params_bytes, &check, error, error_bytes);
}
