// conv.cu: convolution of NCHW pictures as an implicit matrix product, f32.
//
// Rows are a group's filters, columns the output pixels of all pictures, the depth runs over (channel, ky, kx). The right operand is never
// stored: each thread reads the pixels that its columns need and finds zero in the padding.
// Shapes  x [n, c, h, w], w [f, c/groups, kh, kw], y [n, f, oh, ow], f32; any stride, dilation, padding and group
// Tiling  as gemm.cu: 128x64, 64x64 or 16x64 filters x pixels; a group is a block row of the grid
// Cost    4*(x + w + y) bytes, 2*y*c/groups*kh*kw flop
// Roof    64x56x56 from 64 channels, 3x3, batch 32: 7.4 GFLOP at 67 TFLOP/s f32 (H100 SXM) = 0.11 ms; not run on a GPU
// Test    tests/conv.rs: direct convolution, absolute tolerance 1e-5 of the sum of magnitudes
#include "divide.cuh"
#include "gemm_tile.cuh"

// The four neighbouring columns that a thread reads, and where their windows begin.
template <unsigned SIZE, unsigned THREADS>
struct Patches {
  const ConvParams& p;
  const float* x;
  unsigned start[4];  // where the group's first channel of the column's picture begins
  int top[4], left[4];

  __device__ __forceinline__ Patches(const ConvParams& params, unsigned group, unsigned first)
      : p(params), x(at<const float>(params.x)) {
    static_assert(THREADS % (SIZE / 4) == 0, "all of a thread's fours have the same columns");
    const unsigned pixels = p.out_height * p.out_width;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      const unsigned column = first + threadIdx.x % (SIZE / 4) * 4 + i;
      const unsigned image = divide(column, p.by_out_pixels), pixel = column - image * pixels;
      const unsigned oy = divide(pixel, p.by_out_width), ox = pixel - oy * p.out_width;
      const bool inside = image < p.images;
      start[i] = (image * p.channels + group * p.group_channels) * p.height * p.width;
      // A column past the last one lies above every picture, so that it reads zeros.
      top[i] = inside ? static_cast<int>(oy * p.stride_y) - p.pad_top : -(1 << 28);
      left[i] = static_cast<int>(ox * p.stride_x) - p.pad_left;
    }
  }

  template <unsigned DEPTH>
  __device__ __forceinline__ void fetch(Share<SIZE, DEPTH, THREADS>& share, unsigned, unsigned step) const {
    const unsigned area = p.kernel_height * p.kernel_width, depths = p.group_channels * area;
#pragma unroll
    for (unsigned f = 0; f < share.FOURS; f++) {
      const unsigned depth = step + (threadIdx.x + f * THREADS) / (SIZE / 4);
      const unsigned channel = divide(depth, p.by_kernel_area), tap = depth - channel * area;
      const unsigned ky = divide(tap, p.by_kernel_width), kx = tap - ky * p.kernel_width;
      const int dy = static_cast<int>(ky * p.dilation_y), dx = static_cast<int>(kx * p.dilation_x);
      const unsigned plane = channel * p.height * p.width;
#pragma unroll
      for (unsigned i = 0; i < 4; i++) {
        const unsigned iy = static_cast<unsigned>(top[i] + dy), ix = static_cast<unsigned>(left[i] + dx);
        const bool inside = depth < depths && iy < p.height && ix < p.width;  // negative ones are large
        share.four[f].v[i] = inside ? x[start[i] + plane + iy * p.width + ix] : 0.0f;
      }
    }
  }

  template <unsigned DEPTH, unsigned WIDTH>
  __device__ __forceinline__ void put(const Share<SIZE, DEPTH, THREADS>& share, float (&tile)[DEPTH][WIDTH]) const {
#pragma unroll
    for (unsigned f = 0; f < share.FOURS; f++) {
      const unsigned place = threadIdx.x + f * THREADS;
      *reinterpret_cast<Four<float>*>(&tile[place / (SIZE / 4)][place % (SIZE / 4) * 4]) = share.four[f];
    }
  }
};

template <class T>
__device__ __forceinline__ void conv(const ConvParams& p) {
  const unsigned pixels = p.out_height * p.out_width, columns = p.images * pixels;
  const unsigned tiles_across = (columns + T::COLUMNS - 1) / T::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * T::ROWS, first_column = blockIdx.x % tiles_across * T::COLUMNS;
  const unsigned depth = p.group_channels * p.kernel_height * p.kernel_width;

  for (unsigned group = blockIdx.y; group < p.groups; group += gridDim.y) {
    const float* w = at<const float>(p.w) + static_cast<size_t>(group) * p.group_filters * depth;
    float sums[T::ROWS_EACH][T::COLUMNS_EACH] = {};
    multiply_tile<T>(Strided<float>{w, p.group_filters, depth, depth, 1, p.w_vector != 0},
                     Patches<T::COLUMNS, T::THREADS>(p, group, first_column), first_row, first_column, depth, sums);
    store_tile<T>(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
      const unsigned row = first_row + tile_row, column = first_column + tile_column;
      if (row >= p.group_filters || column >= columns) return;
      const unsigned filter = group * p.group_filters + row;
      const unsigned image = divide(column, p.by_out_pixels), pixel = column - image * pixels;
      const size_t place = (static_cast<size_t>(image) * p.filters + filter) * pixels + pixel;
      const float* bias = p.bias ? at<const float>(p.bias) + filter : nullptr;
      at<float>(p.y)[place] = finish(p.epilogue, sum, bias, p.residual ? at<const float>(p.residual) + place : nullptr);
    });
  }
}

ROTA_KERNEL(rota_conv_f32_128x64, ConvParams, 256, 2) { conv<Tile<128, 64, 16, 8, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_64x64, ConvParams, 256, 2) { conv<Tile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_16x64, ConvParams, 128, 5) { conv<Tile<16, 64, 32, 2, 4>>(p); }
