// conv_nhwc.cu: convolution into NHWC pictures as an implicit matrix product, f32 (conv.cuh).
// Shapes  x [n, h, w, c] or [n, c, h, w], w [f, kh, kw, c/groups], y [n, oh, ow, f], f32; any stride, dilation, padding and group
// Tiling  128x64, 64x64 or 16x64 pixels x filters as in gemm.cu; four channels of a tap are a load; a group is blockIdx.y
// Cost    bytes of x, w and y, 2*y*c/groups*kh*kw flop
// Roof    64x56x56 from 64 channels, 3x3, batch 32, f32: 7.4 GFLOP at 67 TFLOP/s = 0.11 ms (H100 SXM); not run on a GPU
// Test    tests/conv.rs: direct sums, absolute tolerance 1e-4
#include "conv.cuh"
#include "simt_tile.cuh"

ROTA_KERNEL(rota_conv_f32_128x64_nhwc, ConvParams, 256, 2) { conv_last<SimtTile<128, 64, 16, 8, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_64x64_nhwc, ConvParams, 256, 2) { conv_last<SimtTile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_conv_f32_16x64_nhwc, ConvParams, 128, 4) { conv_last<SimtTile<16, 64, 32, 4, 4, 2>>(p); }
