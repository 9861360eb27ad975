// depthwise_nhwc.cu: convolution of each channel by itself, channels last.
//
// Bound by memory like depthwise.cu: a thread makes two neighbouring pixels of four neighbouring channels, so every access is four elements
// wide and a warp reads what lies side by side.
// Shapes  x [n, h, w, c], w [kh, kw, c] f32, y [n, oh, ow, c]; c a multiple of 4; f32 or f16
// Tiling  128 threads; 3x3 and 5x5 kernels of stride 1 and 2 unrolled, others in loops
// Cost    bytes of x, w and y, 2*y*kh*kw flop
// Roof    96x112x112, 3x3, batch 32: 308 MB at 3.35 TB/s (H100 SXM) = 92 us; not run on a GPU
// Test    tests/conv.rs: direct convolution, absolute tolerance 1e-5 (f16: 2e-3) of the sum of magnitudes
#include "divide.cuh"
#include "epilogue.cuh"

// Of this file its own: depthwise.cu has the same names.
namespace {

constexpr unsigned EACH = 2, WIDE = 4;  // pixels, channels

// sum += x * w, channel by channel.
template <class T>
__device__ __forceinline__ void add(float (&sum)[WIDE], const Four<T>& x, const Four<float>& w) {
#pragma unroll
  for (unsigned c = 0; c < WIDE; c++) sum[c] = fmaf(to_float(x.v[c]), w.v[c], sum[c]);
}

// A kernel whose size and stride the compiler knows; dilation 1.
template <unsigned KERNEL, unsigned STRIDE>
struct Known {
  template <class T>
  static __device__ __forceinline__ void sum(const ConvParams& p, const T* x, const float* w, int top, int left, float (&sums)[EACH][WIDE]) {
    constexpr unsigned SPAN = (EACH - 1) * STRIDE + KERNEL;
#pragma unroll
    for (unsigned ky = 0; ky < KERNEL; ky++) {
      const unsigned iy = static_cast<unsigned>(top + static_cast<int>(ky));
      if (iy >= p.height) continue;
      Four<float> weights[KERNEL];
#pragma unroll
      for (unsigned kx = 0; kx < KERNEL; kx++) {
        weights[kx] = *reinterpret_cast<const Four<float>*>(w + (ky * KERNEL + kx) * p.channels);
      }
#pragma unroll
      for (unsigned i = 0; i < SPAN; i++) {
        const unsigned ix = static_cast<unsigned>(left + static_cast<int>(i));
        if (ix >= p.width) continue;
        const Four<T> four = *reinterpret_cast<const Four<T>*>(x + (iy * p.width + ix) * p.channels);
#pragma unroll
        for (unsigned o = 0; o < EACH; o++) {
          if (i >= o * STRIDE && i < o * STRIDE + KERNEL) add(sums[o], four, weights[i - o * STRIDE]);
        }
      }
    }
  }
};

struct Any {
  template <class T>
  static __device__ __forceinline__ void sum(const ConvParams& p, const T* x, const float* w, int top, int left, float (&sums)[EACH][WIDE]) {
    for (unsigned ky = 0; ky < p.kernel_height; ky++) {
      const unsigned iy = static_cast<unsigned>(top + static_cast<int>(ky * p.dilation_y));
      if (iy >= p.height) continue;
      for (unsigned kx = 0; kx < p.kernel_width; kx++) {
        const Four<float> weight = *reinterpret_cast<const Four<float>*>(w + (ky * p.kernel_width + kx) * p.channels);
#pragma unroll
        for (unsigned o = 0; o < EACH; o++) {
          const unsigned ix = static_cast<unsigned>(left + static_cast<int>(o * p.stride_x + kx * p.dilation_x));
          if (ix < p.width) add(sums[o], *reinterpret_cast<const Four<T>*>(x + (iy * p.width + ix) * p.channels), weight);
        }
      }
    }
  }
};

template <class T, class Shape>
__device__ __forceinline__ void depthwise(const ConvParams& p) {
  const unsigned across = p.by_across.divisor, fours = p.by_filters.divisor;
  const unsigned total = p.images * p.out_height * across * fours;
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < total; index += gridDim.x * blockDim.x) {
    const unsigned pair = divide(index, p.by_filters), channel = (index - pair * fours) * WIDE;
    const unsigned row = divide(pair, p.by_across), ox = (pair - row * across) * EACH;
    const unsigned image = divide(row, p.by_out_height), oy = row - image * p.out_height;
    const T* x = at<const T>(p.x) + static_cast<size_t>(image) * p.height * p.width * p.channels + channel;

    float sums[EACH][WIDE] = {};
    Shape::sum(p, x, at<const float>(p.w) + channel, static_cast<int>(oy * p.stride_y) - p.pad_top,
               static_cast<int>(ox * p.stride_x) - p.pad_left, sums);

#pragma unroll
    for (unsigned o = 0; o < EACH; o++) {
      if (ox + o >= p.out_width) break;
      const size_t place = (static_cast<size_t>(row) * p.out_width + ox + o) * p.channels + channel;
      const float* bias = p.bias ? at<const float>(p.bias) + channel : nullptr;
      const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
      Four<T> out;
#pragma unroll
      for (unsigned c = 0; c < WIDE; c++) {
        out.v[c] = from_float<T>(finish(p.epilogue, sums[o][c], bias ? bias + c : nullptr, residual ? residual + c : nullptr));
      }
      *reinterpret_cast<Four<T>*>(at<T>(p.y) + place) = out;
    }
  }
}

}  // namespace

#define DEPTHWISE(type)                                                                                                         \
  ROTA_KERNEL(rota_depthwise_##type##_3x3_nhwc, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<3, 1>>(p); }            \
  ROTA_KERNEL(rota_depthwise_##type##_3x3_stride2_nhwc, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<3, 2>>(p); }    \
  ROTA_KERNEL(rota_depthwise_##type##_5x5_nhwc, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<5, 1>>(p); }            \
  ROTA_KERNEL(rota_depthwise_##type##_5x5_stride2_nhwc, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Known<5, 2>>(p); }    \
  ROTA_KERNEL(rota_depthwise_##type##_any_nhwc, ConvParams, 128, 4) { depthwise<DEPTHWISE_##type, Any>(p); }
#define DEPTHWISE_f32 float
#define DEPTHWISE_f16 f16
DEPTHWISE(f32)
DEPTHWISE(f16)
