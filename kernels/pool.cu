// pool.cu: maximum or average over windows of pictures. (Pooling of a whole picture is reduce.cu's.)
// Shapes  x [planes, h, w, inner], y [planes, oh, ow, inner]; f32 or f16; inner is 1 (NCHW), or planes are pictures and inner channels (NHWC)
// Tiling  256 threads, one output each; neighbours share their inputs in L1
// Cost    bytes of x and y, an operation per tap: memory-bound
// Roof    64x112x112 to 64x56x56, batch 32: 128 MB at 3.35 TB/s (H100 SXM) = 38 us; not run on a GPU
// Test    tests/pool.rs: plain loops, exactly for the maximum, 1e-6 for the average
#include "divide.cuh"
#include "types.cuh"

// Where a window that begins at `start` (in the picture) first and last hits [0, size).
struct Taps { int first, end; };

__device__ __forceinline__ Taps taps(int start, unsigned size, unsigned kernel, unsigned dilation) {
  const int step = static_cast<int>(dilation), below = start < 0 ? (-start + step - 1) / step : 0;
  const int room = static_cast<int>(size) - start, above = room <= 0 ? 0 : (room + step - 1) / step;
  return {below, above < static_cast<int>(kernel) ? above : static_cast<int>(kernel)};
}

template <class T>
__device__ __forceinline__ void pool(const PoolParams& p) {
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += gridDim.x * blockDim.x) {
    const unsigned pixel = divide(index, p.by_inner), inner = p.by_inner.divisor;
    const unsigned row = divide(pixel, p.by_out_width), ox = pixel - row * p.by_out_width.divisor;
    const unsigned plane = divide(row, p.by_out_height), oy = row - plane * p.by_out_height.divisor;
    const int top = static_cast<int>(oy * p.stride_y) - p.pad_top, left = static_cast<int>(ox * p.stride_x) - p.pad_left;
    const Taps down = taps(top, p.height, p.kernel_height, p.dilation_y);
    const Taps across = taps(left, p.width, p.kernel_width, p.dilation_x);
    const T* x = at<const T>(p.x) + static_cast<size_t>(plane) * p.height * p.width * inner + (index - pixel * inner);

    float largest = -INFINITY, sum = 0.0f;
    for (int ky = down.first; ky < down.end; ky++) {
      for (int kx = across.first; kx < across.end; kx++) {
        const int iy = top + ky * static_cast<int>(p.dilation_y), ix = left + kx * static_cast<int>(p.dilation_x);
        const float value = to_float(x[(static_cast<size_t>(iy) * p.width + ix) * inner]);
        largest = value > largest || value != value ? value : largest;
        sum += value;
      }
    }
    unsigned taken = (down.end - down.first) * (across.end - across.first);
    if (p.counts_padding) {
      const Taps tall = taps(top + p.pad_top, p.padded_height, p.kernel_height, p.dilation_y);
      const Taps wide = taps(left + p.pad_left, p.padded_width, p.kernel_width, p.dilation_x);
      taken = (tall.end - tall.first) * (wide.end - wide.first);
    }
    at<T>(p.y)[index] = from_float<T>(p.mode == ROTA_POOL_MAX ? largest : sum / static_cast<float>(taken));
  }
}

ROTA_KERNEL(rota_pool_f32, PoolParams, 256, 4) { pool<float>(p); }
ROTA_KERNEL(rota_pool_f16, PoolParams, 256, 4) { pool<f16>(p); }
