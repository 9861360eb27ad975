// copy.cu: moves elements between two strided layouts: slices, concatenations, expansions, permutations.
// Shapes  up to 6 dimensions, any strides on either side; units of 1, 2, 4, 8 or 16 bytes (the host joins neighbours into the widest)
// Tiling  256 threads, a unit each, neighbours in y
// Cost    twice the bytes copied: memory-bound; a permutation that moves the last axis is transpose.cu's
// Roof    64 MB at 3.35 TB/s (H100 SXM) = 38 us; not run on a GPU
// Test    tests/layout.rs: index by index, exactly
#include "divide.cuh"

template <class T>
__device__ __forceinline__ void copy(const CopyParams& p) {
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += gridDim.x * blockDim.x) {
    int64_t from = 0, to = 0;
    unsigned rest = index;
#pragma unroll 1
    for (unsigned axis = p.rank; axis-- > 0;) {
      const unsigned outer = divide(rest, p.dims[axis]);
      const int64_t place = rest - outer * p.dims[axis].divisor;
      from += place * p.x_strides[axis];
      to += place * p.y_strides[axis];
      rest = outer;
    }
    at<T>(p.y)[to] = at<const T>(p.x)[from];
  }
}

ROTA_KERNEL(rota_copy_1, CopyParams, 256, 4) { copy<uint8_t>(p); }
ROTA_KERNEL(rota_copy_2, CopyParams, 256, 4) { copy<uint16_t>(p); }
ROTA_KERNEL(rota_copy_4, CopyParams, 256, 4) { copy<uint32_t>(p); }
ROTA_KERNEL(rota_copy_8, CopyParams, 256, 4) { copy<uint64_t>(p); }
ROTA_KERNEL(rota_copy_16, CopyParams, 256, 4) { copy<uint4>(p); }
