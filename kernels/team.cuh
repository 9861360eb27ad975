// team.cuh: the threads that work on a row together: a warp, or where rows are few and long the block.
//
// A value is folded within each warp first, by the kernel; `across` then folds those of the team's warps, in their order.
#pragma once

#include "rota.cuh"

struct OfWarp {
  static __device__ __forceinline__ unsigned size() { return WARP; }
  static __device__ __forceinline__ unsigned rank() { return threadIdx.x % WARP; }
  // Teams of a block, and which of them this thread is in.
  static __device__ __forceinline__ unsigned count() { return blockDim.x / WARP; }
  static __device__ __forceinline__ unsigned index() { return threadIdx.x / WARP; }

  template <class V, class Fold>
  static __device__ __forceinline__ V across(V value, const Fold&) { return value; }
};

struct OfBlock {
  static constexpr unsigned WARPS_MAX = 8;

  static __device__ __forceinline__ unsigned size() { return blockDim.x; }
  static __device__ __forceinline__ unsigned rank() { return threadIdx.x; }
  static __device__ __forceinline__ unsigned count() { return 1; }
  static __device__ __forceinline__ unsigned index() { return 0; }

  template <class V, class Fold>
  static __device__ __forceinline__ V across(V value, const Fold& fold) {
    using Values = V[WARPS_MAX];
    ROTA_SHARED(Values, values);
    const unsigned warps = blockDim.x / WARP;
    if (warps == 1) return value;
    if (threadIdx.x % WARP == 0) values[threadIdx.x / WARP] = value;
    __syncthreads();
    V all = values[0];
    for (unsigned warp = 1; warp < warps; warp++) all = fold(all, values[warp]);
    __syncthreads();  // the next value may go there
    return all;
  }
};

struct Add {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
