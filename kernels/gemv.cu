// gemv.cu: c = epilogue(a b) for a few rows: dense layers of small batches, whose time is reading the weights once.
//
// A tile of a large product would leave most of a GPU idle here: a thousand columns are sixteen tiles. So the depth is what threads share.
// "deep": b's neighbours in memory are neighbours along the depth; a warp has one column, its lanes stride over the depth.
// "wide": they are neighbouring columns; eight lanes read 32 columns of one depth, and 32 such groups stride over the depth.
// Shapes  a [rows, depth], b [depth, columns], c [rows, columns]; rows <= 8; f32, f16 or bf16; batches as gemm.cu
// Tiling  deep: 128 threads, four columns; wide: 256 threads, 32 columns, partial sums through shared memory
// Cost    bytes of b (a stays in L1), 2*rows*columns*depth flop
// Roof    1x1280 by 1280x1000 f32: 5.1 MB at 3.35 TB/s (H100 SXM) = 1.5 us; not run on a GPU
// Test    tests/gemm.rs: three loops in f64, as gemm.cu
#include "gemm.cuh"

constexpr unsigned ROWS = 8, GROUP = 8, GROUPS = 32, WIDTH = 4 * GROUP;

// One batch's operands and where its results go.
template <class T>
struct Operands {
  const GemmParams& p;
  uint64_t shift;  // of c and the residual
  float* partial;
  Depths depths;
  Strided<T> a, b;

  __device__ __forceinline__ Operands(const GemmParams& params, unsigned batch) : p(params) {
    const uint64_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    shift = outer * p.c_outer + inner * p.c_inner;
    partial = partial_of(p, batch);
    depths = own_depths(p.depth, p.split_depth);
    a = {at<const T>(p.a) + outer * p.a_outer + inner * p.a_inner, p.rows, p.depth, p.a_row, p.a_depth,
         p.a_vector != 0 && p.a_depth == 1};
    b = {at<const T>(p.b) + outer * p.b_outer + inner * p.b_inner, p.columns, p.depth, p.b_column, p.b_depth, p.b_vector != 0};
  }

  __device__ __forceinline__ void keep(unsigned row, unsigned column, float sum) const {
    if (row >= p.rows || column >= p.columns) return;
    if (partial) {
      partial[static_cast<size_t>(row) * p.columns + column] = sum;
      return;
    }
    const size_t place = shift + static_cast<size_t>(row) * p.c_row + column;
    const T* bias = p.bias ? at<const T>(p.bias) + static_cast<size_t>(row) * p.epilogue.bias_row +
                                 static_cast<size_t>(column) * p.epilogue.bias_column
                           : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
    at<T>(p.c)[place] = from_float<T>(finish(p.epilogue, sum, bias, residual));
  }
};

template <class T>
__device__ __forceinline__ void gemv_deep(const GemmParams& p) {
  const unsigned lane = threadIdx.x % WARP, column = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  for (unsigned batch = blockIdx.y; batch < p.batch_outer * p.batch_inner; batch += gridDim.y) {
    const Operands<T> operands(p, batch);
    float sums[ROWS] = {};
    for (unsigned depth = operands.depths.begin + lane * 4; depth < operands.depths.end; depth += WARP * 4) {
      const Four<float> right = operands.b.load4(column, depth, true);
#pragma unroll
      for (unsigned r = 0; r < ROWS; r++) {
        if (r >= p.rows) break;
        const Four<float> left = operands.a.load4(r, depth, true);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) sums[r] = fmaf(left.v[i], right.v[i], sums[r]);
      }
    }
    // Lane r keeps row r; selecting by comparison leaves the sums in registers.
    float mine = 0.0f;
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
      const float sum = warp_sum(sums[r]);
      mine = lane == r ? sum : mine;
    }
    operands.keep(lane, column, mine);
  }
}

template <class T>
__device__ __forceinline__ void gemv_wide(const GemmParams& p) {
  using Partial = float[GROUPS][WIDTH];
  ROTA_SHARED(Partial, partial);
  const unsigned group = threadIdx.x / GROUP, within = threadIdx.x % GROUP * 4, first = blockIdx.x * WIDTH;
  for (unsigned batch = blockIdx.y; batch < p.batch_outer * p.batch_inner; batch += gridDim.y) {
    const Operands<T> operands(p, batch);
    Four<float> sums[ROWS] = {};
    for (unsigned depth = operands.depths.begin + group; depth < operands.depths.end; depth += GROUPS) {
      const Four<float> right = operands.b.load4(first + within, depth, false);
#pragma unroll
      for (unsigned r = 0; r < ROWS; r++) {
        if (r >= p.rows) break;
        const float left = operands.a.load(r, depth);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) sums[r].v[i] = fmaf(left, right.v[i], sums[r].v[i]);
      }
    }
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
      if (r >= p.rows) break;  // for all threads alike
      *reinterpret_cast<Four<float>*>(&partial[group][within]) = sums[r];
      __syncthreads();
      if (threadIdx.x < WIDTH) {
        float sum = 0.0f;
        for (unsigned g = 0; g < GROUPS; g++) sum += partial[g][threadIdx.x];
        operands.keep(r, first + threadIdx.x, sum);
      }
      __syncthreads();
    }
  }
}

ROTA_KERNEL(rota_gemv_f32_deep, GemmParams, 128, 4) { gemv_deep<float>(p); }
ROTA_KERNEL(rota_gemv_f32_wide, GemmParams, 256, 3) { gemv_wide<float>(p); }
ROTA_KERNEL(rota_gemv_f16_deep, GemmParams, 128, 4) { gemv_deep<f16>(p); }
ROTA_KERNEL(rota_gemv_f16_wide, GemmParams, 256, 3) { gemv_wide<f16>(p); }
ROTA_KERNEL(rota_gemv_bf16_deep, GemmParams, 128, 4) { gemv_deep<bf16>(p); }
ROTA_KERNEL(rota_gemv_bf16_wide, GemmParams, 256, 3) { gemv_wide<bf16>(p); }
