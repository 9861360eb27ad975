// gemm_async.cu: c = epilogue(a b) on tensor cores, as gemm_mma.cu, for operands that can be copied to shared memory as they are.
// Shapes  as gemm_mma.cu; a's rows lie along the depth; starts, strides and the lengths that lie side by side are multiples of 16 bytes
// Tiling  128x64 (256 threads), 64x64 (128) or 32x64 (64); a warp has 32x32; steps of 32 deep (tf32: 16), three in flight, of the smaller tiles four
//         (async_tile.cuh); before compute capability 8.0 none is
// Cost    bytes of a, b and c, 2*rows*columns*depth flop
// Roof    4096^3 at 989 TFLOP/s f16 (H100 SXM, dense) = 0.14 ms: compute-bound; mma.sync reaches about 60 % of what Hopper's wgmma
//         does, which is not used; not run on a GPU
// Test    tests/gemm.rs: three loops in f64 over rounded operands, as gemm_mma.cu
#include "async_tile.cuh"
#include "gemm.cuh"

// Three stages of the largest tile are what 48 KB of static shared memory hold.
#define GEMM_ASYNC(name, Math)                                                                                  \
  ROTA_KERNEL(rota_gemm_##name##_128x64_async, GemmParams, 256, 2) { gemm<AsyncTile<Math, 4, 2, 3>>(p); }       \
  ROTA_KERNEL(rota_gemm_##name##_64x64_async, GemmParams, 128, 4) { gemm<AsyncTile<Math, 2, 2, 4>>(p); }        \
  ROTA_KERNEL(rota_gemm_##name##_32x64_async, GemmParams, 64, 6) { gemm<AsyncTile<Math, 1, 2, 4>>(p); }
GEMM_ASYNC(f16, HalfPairs)
GEMM_ASYNC(bf16, BfloatPairs)
GEMM_ASYNC(tf32, Tf32)
