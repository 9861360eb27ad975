// conv.cu: convolution of NCHW pictures as an implicit matrix product, f32 (conv.cuh).
// Shapes  x [n, c, h, w], w [f, c/groups, kh, kw], y [n, f, oh, ow], f32; any stride, dilation, padding and group
// Tiling  128x64, 64x64 or 16x64 filters x pixels as in gemm.cu; a group is blockIdx.y
// Cost    4*(x + w + y) bytes, 2*y*c/groups*kh*kw flop
// Roof    64x56x56 from 64 channels, 3x3, batch 32: 7.4 GFLOP at 67 TFLOP/s f32 (H100 SXM) = 0.11 ms; not run on a GPU
// Test    tests/conv.rs: direct sums, absolute tolerance 1e-4
#include "conv.cuh"
#include "simt_tile.cuh"

ROTA_KERNEL(rota_conv_f32_128x64, ConvParams, 256, 2) { conv<SimtTile<128, 64, 16, 8, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_64x64, ConvParams, 256, 2) { conv<SimtTile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_16x64, ConvParams, 128, 4) { conv<SimtTile<16, 64, 32, 4, 4, 2>>(p); }
