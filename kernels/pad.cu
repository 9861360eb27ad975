// pad.cu: y is x with more (or fewer) elements in front of and behind each axis.
// Shapes  up to 6 dimensions, x of any strides, y contiguous; elements of 1, 2, 4 or 8 bytes
// Tiling  256 threads, an element each
// Cost    bytes of x and y: memory-bound
// Roof    64 MB in all at 3.35 TB/s (H100 SXM) = 19 us; not run on a GPU
// Test    tests/layout.rs: index by index, exactly
#include "divide.cuh"

// Where an element that is `place` elements from the beginning of an axis comes from; -1 for the constant.
__device__ __forceinline__ int source(uint32_t mode, int place, int size) {
  if (place >= 0 && place < size) return place;
  switch (mode) {
    case ROTA_PAD_EDGE: return place < 0 ? 0 : size - 1;
    case ROTA_PAD_WRAP: return (place % size + size) % size;
    case ROTA_PAD_REFLECT: {
      const int period = size > 1 ? 2 * (size - 1) : 1, within = (place % period + period) % period;
      return within < size ? within : period - within;
    }
    default: return -1;
  }
}

template <class T>
__device__ __forceinline__ void pad(const PadParams& p) {
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += gridDim.x * blockDim.x) {
    size_t from = 0;
    bool inside = true;
    unsigned rest = index;
#pragma unroll 1
    for (unsigned axis = p.rank; axis-- > 0;) {
      const unsigned outer = divide(rest, p.dims[axis]);
      const int place = static_cast<int>(rest - outer * p.dims[axis].divisor) - p.begins[axis];
      const int found = source(p.mode, place, p.sizes[axis]);
      inside = inside && found >= 0;
      from += static_cast<size_t>(found) * p.strides[axis];
      rest = outer;
    }
    at<T>(p.y)[index] = inside ? at<const T>(p.x)[from] : static_cast<T>(p.value);
  }
}

ROTA_KERNEL(rota_pad_1, PadParams, 256, 4) { pad<uint8_t>(p); }
ROTA_KERNEL(rota_pad_2, PadParams, 256, 4) { pad<uint16_t>(p); }
ROTA_KERNEL(rota_pad_4, PadParams, 256, 4) { pad<uint32_t>(p); }
ROTA_KERNEL(rota_pad_8, PadParams, 256, 4) { pad<uint64_t>(p); }
