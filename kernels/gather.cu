// gather.cu: y[o, j, i] = x[o, indices[j], i]: rows by number, embeddings.
//
// Indices may come from a client. One that is out of range is clamped, so that it can't fault the context that all
// share, and the item which it belongs to is marked, so that only that request fails.
// Shapes  x [outer, axis, inner], indices i32 or i64 [count] (or [outer, count, inner]), y [outer, count, inner]; units of 1 to 16 bytes
// Tiling  256 threads, a unit each, neighbours in y
// Cost    bytes of y twice and of the indices: memory-bound
// Roof    8192 rows of 384 f32: 25 MB at 3.35 TB/s (H100 SXM) = 8 us; not run on a GPU
// Test    tests/layout.rs: index by index, exactly, with indices out of range
#include "divide.cuh"

template <class T>
__device__ __forceinline__ void gather(const GatherParams& p) {
  const unsigned total = p.outer * p.count * p.inner;
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < total; index += gridDim.x * blockDim.x) {
    const unsigned row = divide(index, p.by_inner), i = index - row * p.inner;
    const unsigned o = divide(row, p.by_count), j = row - o * p.count;
    const unsigned place = p.per_element ? index : j;
    const int64_t size = p.axis;
    int64_t wanted = p.wide ? at<const int64_t>(p.indices)[place] : at<const int32_t>(p.indices)[place];
    if (wanted < 0) wanted += size;  // counted from the end
    if (wanted < 0 || wanted >= size) {
      wanted = wanted < 0 ? 0 : size - 1;
      if (p.flags) atomicOr(at<unsigned>(p.flags) + divide(place, p.by_item), 1u);
    }
    at<T>(p.y)[index] = at<const T>(p.x)[(static_cast<size_t>(o) * p.axis + static_cast<size_t>(wanted)) * p.inner + i];
  }
}

ROTA_KERNEL(rota_gather_1, GatherParams, 256, 4) { gather<uint8_t>(p); }
ROTA_KERNEL(rota_gather_2, GatherParams, 256, 4) { gather<uint16_t>(p); }
ROTA_KERNEL(rota_gather_4, GatherParams, 256, 4) { gather<uint32_t>(p); }
ROTA_KERNEL(rota_gather_8, GatherParams, 256, 4) { gather<uint64_t>(p); }
ROTA_KERNEL(rota_gather_16, GatherParams, 256, 4) { gather<uint4>(p); }
