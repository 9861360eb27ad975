// conv_transpose.cu: transposed convolution, gathered: each output pixel looks for the inputs that reach it.
//
// Gathering needs no atomics and no zeroed output; with a kernel as large as its stride, each output has one tap per channel.
// Shapes  x [n, c, h, w], w [c, f/groups, kh, kw], y [n, f, oh, ow]; f32 or f16
// Tiling  128 threads, each one pixel of four filters, so that an input is read once for all four
// Cost    bytes of x, w and y, 2*x*f/groups*kh*kw flop
// Roof    24x160x160 from 24x80x80, 2x2 stride 2, batch 8: 24 MB at 3.35 TB/s (H100 SXM) = 7 us; not run on a GPU
// Test    tests/conv.rs: scattered sums, absolute tolerance 1e-5 (f16: 2e-3) of the sum of magnitudes
#include "divide.cuh"
#include "epilogue.cuh"

constexpr unsigned EACH = 4;

template <class T>
__device__ __forceinline__ void conv_transpose(const ConvParams& p) {
  const unsigned pixels = p.out_height * p.out_width, area = p.kernel_height * p.kernel_width;
  const unsigned fours = (p.group_filters + EACH - 1) / EACH;  // of one group
  const unsigned total = p.images * p.by_filters.divisor * pixels;
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < total; index += gridDim.x * blockDim.x) {
    const unsigned rest = divide(index, p.by_out_pixels), pixel = index - rest * pixels;
    const unsigned oy = divide(pixel, p.by_out_width), ox = pixel - oy * p.out_width;
    const unsigned image = divide(rest, p.by_filters), four = rest - image * p.by_filters.divisor;
    const unsigned group = four / fours, first = (four - group * fours) * EACH;  // filter within the group

    float sums[EACH] = {};
    for (unsigned ky = 0; ky < p.kernel_height; ky++) {
      const int y = static_cast<int>(oy) + p.pad_top - static_cast<int>(ky * p.dilation_y);
      const unsigned iy = static_cast<unsigned>(y) / p.stride_y;
      if (y < 0 || iy * p.stride_y != static_cast<unsigned>(y) || iy >= p.height) continue;
      for (unsigned kx = 0; kx < p.kernel_width; kx++) {
        const int x = static_cast<int>(ox) + p.pad_left - static_cast<int>(kx * p.dilation_x);
        const unsigned ix = static_cast<unsigned>(x) / p.stride_x;
        if (x < 0 || ix * p.stride_x != static_cast<unsigned>(x) || ix >= p.width) continue;
        for (unsigned c = 0; c < p.group_channels; c++) {
          const unsigned channel = group * p.group_channels + c;
          const size_t in = ((static_cast<size_t>(image) * p.channels + channel) * p.height + iy) * p.width + ix;
          const float value = to_float(at<const T>(p.x)[in]);
          const T* w = at<const T>(p.w) + (static_cast<size_t>(channel) * p.group_filters + first) * area + ky * p.kernel_width + kx;
#pragma unroll
          for (unsigned i = 0; i < EACH; i++) {
            if (first + i < p.group_filters) sums[i] = fmaf(value, to_float(w[i * area]), sums[i]);
          }
        }
      }
    }
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
      if (first + i >= p.group_filters) break;
      const unsigned filter = group * p.group_filters + first + i;
      const size_t place = (static_cast<size_t>(image) * p.filters + filter) * pixels + pixel;
      const float* bias = p.bias ? at<const float>(p.bias) + filter : nullptr;
      const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
      at<T>(p.y)[place] = from_float<T>(finish(p.epilogue, sums[i], bias, residual));
    }
  }
}

ROTA_KERNEL(rota_conv_transpose_f32, ConvParams, 128, 4) { conv_transpose<float>(p); }
ROTA_KERNEL(rota_conv_transpose_f16, ConvParams, 128, 4) { conv_transpose<f16>(p); }
