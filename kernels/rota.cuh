// rota.cuh: the words that every kernel file uses, for nvcc and for g++ (host/cuda_host.h).
//
// One source serves both. So: a kernel is declared with ROTA_KERNEL, shared memory with ROTA_SHARED, and what needs inline
// PTX lives behind a function with two bodies.
#pragma once

#include "params.h"

#ifdef ROTA_HOST
#include "host/cuda_host.h"
#else
#include <cuda_runtime.h>

// A kernel: its entry, the struct that it takes, the largest block that it may be launched with, and how many such
// blocks a multiprocessor should hold. `p` is the parameter; it stays in constant memory and is indexed there.
#define ROTA_KERNEL(name, Params, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

// An array in shared memory, aligned for 16-byte accesses; `type` names an array type.
#define ROTA_SHARED(type, name) __shared__ alignas(16) type name
#endif

constexpr unsigned WARP = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;

// An address out of the parameters.
template <class T>
__device__ __forceinline__ T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (unsigned offset = WARP / 2; offset; offset /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, offset));
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (unsigned offset = WARP / 2; offset; offset /= 2) value += __shfl_xor_sync(FULL_WARP, value, offset);
  return value;
}
