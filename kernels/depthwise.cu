// depthwise.cu: convolution where each filter sees one channel.
//
// No reuse across channels, so this is bound by memory: a thread makes four neighbouring outputs and reads each input of their common rows once.
// Weights are f32 for all elements: of a few taps the rounding of each shows in the sum, and they are next to nothing to read.
// Shapes  x [n, c, h, w], w [f, 1, kh, kw] f32, y [n, f, oh, ow]; f a multiple of c; f32 or f16
// Tiling  128 threads; 3x3 and 5x5 kernels of stride 1 and 2 unrolled, others in loops
// Cost    bytes of x, w and y, 2*y*kh*kw flop
// Roof    96x112x112, 3x3, batch 32: 308 MB at 3.35 TB/s (H100 SXM) = 92 us; not run on a GPU
// Test    tests/conv.rs: direct convolution, absolute tolerance 1e-5 (f16: 2e-3) of the sum of magnitudes
#include "divide.cuh"
#include "epilogue.cuh"

constexpr unsigned EACH = 4;

// A kernel whose size and stride the compiler knows; dilation 1.
template <unsigned KERNEL, unsigned STRIDE>
struct Known {
  template <class T>
  static __device__ __forceinline__ void sum(const ConvParams& p, const T* x, const float* w, int top, int left, float (&sums)[EACH]) {
    constexpr unsigned SPAN = (EACH - 1) * STRIDE + KERNEL;
#pragma unroll
    for (unsigned ky = 0; ky < KERNEL; ky++) {
      const unsigned iy = static_cast<unsigned>(top + static_cast<int>(ky));
      if (iy >= p.height) continue;
      float row[SPAN];
#pragma unroll
      for (unsigned i = 0; i < SPAN; i++) {
        const unsigned ix = static_cast<unsigned>(left + static_cast<int>(i));
        row[i] = ix < p.width ? to_float(x[iy * p.width + ix]) : 0.0f;
      }
#pragma unroll
      for (unsigned kx = 0; kx < KERNEL; kx++) {
        const float weight = w[ky * KERNEL + kx];
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) sums[i] = fmaf(row[i * STRIDE + kx], weight, sums[i]);
      }
    }
  }
};

struct Any {
  template <class T>
  static __device__ __forceinline__ void sum(const ConvParams& p, const T* x, const float* w, int top, int left, float (&sums)[EACH]) {
    for (unsigned ky = 0; ky < p.kernel_height; ky++) {
      const unsigned iy = static_cast<unsigned>(top + static_cast<int>(ky * p.dilation_y));
      if (iy >= p.height) continue;
      for (unsigned kx = 0; kx < p.kernel_width; kx++) {
        const float weight = w[ky * p.kernel_width + kx];
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) {
          const unsigned ix = static_cast<unsigned>(left + static_cast<int>(i * p.stride_x + kx * p.dilation_x));
          if (ix < p.width) sums[i] = fmaf(to_float(x[iy * p.width + ix]), weight, sums[i]);
        }
      }
    }
  }
};

template <class T, class Shape>
__device__ __forceinline__ void depthwise(const ConvParams& p) {
  const unsigned across = p.by_across.divisor, total = p.images * p.filters * p.out_height * across;
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < total; index += gridDim.x * blockDim.x) {
    const unsigned row = divide(index, p.by_across), ox = (index - row * across) * EACH;
    const unsigned plane = divide(row, p.by_out_height), oy = row - plane * p.out_height;
    const unsigned image = divide(plane, p.by_filters), filter = plane - image * p.filters;
    const unsigned channel = filter / p.group_filters;  // filters of one channel are neighbours
    const T* x = at<const T>(p.x) + (static_cast<size_t>(image) * p.channels + channel) * p.height * p.width;
    const float* w = at<const float>(p.w) + static_cast<size_t>(filter) * p.kernel_height * p.kernel_width;

    float sums[EACH] = {};
    Shape::sum(p, x, w, static_cast<int>(oy * p.stride_y) - p.pad_top, static_cast<int>(ox * p.stride_x) - p.pad_left, sums);

    const size_t place = (static_cast<size_t>(plane) * p.out_height + oy) * p.out_width + ox;
    const float* bias = p.bias ? at<const float>(p.bias) + filter : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
      if (ox + i < p.out_width) {
        at<T>(p.y)[place + i] = from_float<T>(finish(p.epilogue, sums[i], bias, residual ? residual + i : nullptr));
      }
    }
  }
}

#define DEPTHWISE(type)                                                                                                    \
  ROTA_KERNEL(rota_depthwise_##type##_3x3, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<3, 1>>(p); }            \
  ROTA_KERNEL(rota_depthwise_##type##_3x3_stride2, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<3, 2>>(p); }    \
  ROTA_KERNEL(rota_depthwise_##type##_5x5, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<5, 1>>(p); }            \
  ROTA_KERNEL(rota_depthwise_##type##_5x5_stride2, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<5, 2>>(p); }    \
  ROTA_KERNEL(rota_depthwise_##type##_any, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Any>(p); }
#define DEPTHWISE_f32 float
#define DEPTHWISE_f16 f16
DEPTHWISE(f32)
DEPTHWISE(f16)
