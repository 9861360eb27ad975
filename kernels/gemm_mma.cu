// gemm_mma.cu: c = epilogue(a b) on tensor cores, batched, operands at any strides; sums in f32.
// Shapes  as gemm.cu; elements f16, bf16, or f32 that is rounded to tf32
// Tiling  128x64 (256 threads), 64x64 (128) or 32x64 (64); a warp has 32x32; 32 deep (tf32: 16) steps in two buffers (mma_tile.cuh)
// Cost    bytes of a, b and c, 2*rows*columns*depth flop
// Roof    4096^3 at 989 TFLOP/s f16 (H100 SXM, dense) = 0.14 ms: compute-bound; mma.sync reaches about 60 % of what Hopper's wgmma
//         does, which is not used; not run on a GPU
// Test    tests/gemm.rs: three loops in f64 over rounded operands, absolute tolerance 1e-6 of the sum of magnitudes and the output's rounding
#include "gemm.cuh"
#include "mma_tile.cuh"

#define GEMM_MMA(name, Math)                                                                          \
  ROTA_KERNEL(rota_gemm_##name##_128x64, GemmParams, 256, 2) { gemm<MmaTile<Math, 4, 2>>(p); }        \
  ROTA_KERNEL(rota_gemm_##name##_64x64, GemmParams, 128, 4) { gemm<MmaTile<Math, 2, 2>>(p); }         \
  ROTA_KERNEL(rota_gemm_##name##_32x64, GemmParams, 64, 6) { gemm<MmaTile<Math, 1, 2>>(p); }
GEMM_MMA(f16, HalfPairs)
GEMM_MMA(bf16, BfloatPairs)
GEMM_MMA(tf32, Tf32)
