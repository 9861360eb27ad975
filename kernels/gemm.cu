// gemm.cu: c = epilogue(a b) in f32 arithmetic, batched, operands at any strides.
// Shapes  a [rows, depth], b [depth, columns], c [rows, columns], each behind two batch strides; f32
// Tiling  256 threads have 128x128 (8x8 each, depth 8) or 64x64 (4x4 each, depth 16); 128 have 16x64 (2x4 each, depth 32);
//         two buffers in shared memory, the next step's loads in flight while one is multiplied (gemm_tile.cuh)
// Cost    4*(rows*depth + depth*columns + rows*columns) bytes, 2*rows*columns*depth flop
// Roof    4096^3 at 67 TFLOP/s f32 (H100 SXM) = 2.05 ms: compute-bound; not run on a GPU
// Test    tests/gemm.rs, relative tolerance 1e-5 of the sum of magnitudes
#include "gemm_tile.cuh"

template <class T>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  const unsigned tiles_across = (p.columns + T::COLUMNS - 1) / T::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * T::ROWS, first_column = blockIdx.x % tiles_across * T::COLUMNS;
  const unsigned batches = p.batch_outer * p.batch_inner;

  for (unsigned batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    const size_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    const float* a = at<const float>(p.a) + outer * p.a_outer + inner * p.a_inner;
    const float* b = at<const float>(p.b) + outer * p.b_outer + inner * p.b_inner;
    const size_t shift = outer * p.c_outer + inner * p.c_inner;

    float sums[T::ROWS_EACH][T::COLUMNS_EACH] = {};
    multiply_tile<T>(Strided<float>{a, p.rows, p.depth, p.a_row, p.a_depth, p.a_vector != 0},
                     Strided<float>{b, p.columns, p.depth, p.b_column, p.b_depth, p.b_vector != 0},
                     first_row, first_column, p.depth, sums);
    store_tile<T>(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
      const size_t row = first_row + tile_row, column = first_column + tile_column;
      if (row >= p.rows || column >= p.columns) return;
      const size_t place = shift + row * p.c_row + column;
      const float* bias =
          p.bias ? at<const float>(p.bias) + row * p.epilogue.bias_row + column * p.epilogue.bias_column : nullptr;
      at<float>(p.c)[place] = finish(p.epilogue, sum, bias, p.residual ? at<const float>(p.residual) + place : nullptr);
    });
  }
}

ROTA_KERNEL(rota_gemm_f32_128x128, GemmParams, 256, 2) { gemm<Tile<128, 128, 8, 8, 8>>(p); }
ROTA_KERNEL(rota_gemm_f32_64x64, GemmParams, 256, 2) { gemm<Tile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_gemm_f32_16x64, GemmParams, 128, 6) { gemm<Tile<16, 64, 32, 2, 4>>(p); }
