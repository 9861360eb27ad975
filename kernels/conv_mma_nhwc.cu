// conv_mma_nhwc.cu: convolution into NHWC pictures as an implicit matrix product, tensor cores, sums in f32 (conv.cuh).
// Shapes  x [n, h, w, c] or [n, c, h, w], w [f, kh, kw, c/groups], y [n, oh, ow, f], f16, or f32 that is rounded to tf32; any stride, dilation, padding and group
// Tiling  128x64, 64x64 or 32x64 pixels x filters as in gemm_mma.cu; four channels of a tap are a load; a group is blockIdx.y
// Cost    bytes of x, w and y, 2*y*c/groups*kh*kw flop
// Roof    64x56x56 from 64 channels, 3x3, batch 32, f16: 26 MB at 3.35 TB/s = 8 us (H100 SXM); not run on a GPU
// Test    tests/conv.rs: direct sums, absolute tolerance of the elements' rounding
#include "conv.cuh"
#include "mma_tile.cuh"

#define CONV_MMA(name, Math)                                                                               \
  ROTA_KERNEL(rota_conv_##name##_128x64_nhwc, ConvParams, 256, 2) { conv_last<MmaTile<Math, 4, 2>>(p); }   \
  ROTA_KERNEL(rota_conv_##name##_64x64_nhwc, ConvParams, 128, 4) { conv_last<MmaTile<Math, 2, 2>>(p); }    \
  ROTA_KERNEL(rota_conv_##name##_32x64_nhwc, ConvParams, 64, 6) { conv_last<MmaTile<Math, 1, 2>>(p); }
CONV_MMA(f16, HalfPairs)
CONV_MMA(tf32, Tf32)
