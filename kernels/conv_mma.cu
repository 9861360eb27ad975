// conv_mma.cu: convolution of NCHW pictures as an implicit matrix product on tensor cores (conv.cuh); sums in f32.
// Shapes  as conv.cu; elements f16, or f32 that is rounded to tf32
// Tiling  as gemm_mma.cu, filters x pixels
// Cost    bytes of x, w and y, 2*y*c/groups*kh*kw flop
// Roof    64x56x56 from 64 channels, 3x3, batch 32, f16: 26 MB at 3.35 TB/s (H100 SXM) = 8 us; not run on a GPU
// Test    tests/conv.rs: direct sums, absolute tolerance of the elements' rounding
#include "conv.cuh"
#include "mma_tile.cuh"

#define CONV_MMA(name, Math)                                                                          \
  ROTA_KERNEL(rota_conv_##name##_128x64, ConvParams, 256, 2) { conv<MmaTile<Math, 4, 2>>(p); }        \
  ROTA_KERNEL(rota_conv_##name##_64x64, ConvParams, 128, 4) { conv<MmaTile<Math, 2, 2>>(p); }         \
  ROTA_KERNEL(rota_conv_##name##_32x64, ConvParams, 64, 6) { conv<MmaTile<Math, 1, 2>>(p); }
CONV_MMA(f16, HalfPairs)
CONV_MMA(tf32, Tf32)
