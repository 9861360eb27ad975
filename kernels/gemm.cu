// gemm.cu: c = epilogue(a b) in f32 arithmetic, batched, operands at any strides.
// Shapes  a [rows, depth], b [depth, columns], c [rows, columns], each behind two batch strides; f32
// Tiling  256 threads have 128x64 (8x4 each) or 64x64 (4x4 each) in steps 16 deep; 128 have 16x64 (4x4 each, two slices) 32 deep;
//         two buffers in shared memory, the next step's loads in flight while one is multiplied (simt_tile.cuh)
// Cost    4*(rows*depth + depth*columns + rows*columns) bytes, 2*rows*columns*depth flop
// Roof    4096^3 at 67 TFLOP/s f32 (H100 SXM) = 2.05 ms: compute-bound; not run on a GPU
// Test    tests/gemm.rs: three loops in f64, absolute tolerance 1e-6 of the sum of magnitudes
#include "gemm.cuh"
#include "simt_tile.cuh"

// From compute capability 10.0 on the compiler pairs f32 operations, which takes more registers: one block rather than spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr unsigned BLOCKS_OF_LARGE = 1;
#else
constexpr unsigned BLOCKS_OF_LARGE = 2;
#endif

ROTA_KERNEL(rota_gemm_f32_128x64, GemmParams, 256, BLOCKS_OF_LARGE) { gemm<SimtTile<128, 64, 16, 8, 4>>(p); }
ROTA_KERNEL(rota_gemm_f32_64x64, GemmParams, 256, 2) { gemm<SimtTile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_gemm_f32_16x64, GemmParams, 128, 4) { gemm<SimtTile<16, 64, 32, 4, 4, 2>>(p); }
