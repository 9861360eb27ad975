// copies.cuh: copies from global to shared memory that run while their thread goes on, 16 bytes each.
//
// A thread begins copies, closes a group of them, and waits until at most some groups of its own are under way. What landed is seen by
// others after a barrier. Before compute capability 8.0 a copy is over when it has begun.
#pragma once

#include "types.cuh"

// Copies 16 bytes to `target`, or zeros if `inside` is false; then `source` is any address, and not read.
__device__ __forceinline__ void begin_copy(void* target, const void* source, bool inside) {
#if defined(ROTA_HOST)
  rota_host::begin_copy(target, inside ? source : nullptr);
#elif __CUDA_ARCH__ < 800
  *static_cast<uint4*>(target) = inside ? *static_cast<const uint4*>(source) : uint4{0, 0, 0, 0};
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(target)), bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void close_copies() {
#if defined(ROTA_HOST)
  rota_host::close_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most GROUPS groups of this thread's are under way.
template <unsigned GROUPS>
__device__ __forceinline__ void wait_for_copies() {
#if defined(ROTA_HOST)
  rota_host::wait_for_copies(GROUPS);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}
