// normalize.cu: layer, group, instance and root-mean-square normalisation of rows, with an addition before it.
// Shapes  x, y [rows, columns], gamma and beta per row or per column; f32 or f16
// Tiling  a block per row: 32 threads for short rows, up to 256; mean first, then the variance around it, so that nothing cancels
// Cost    bytes of x and y (the row is read three times, twice from L1 or L2), ~8 flop per element: memory-bound
// Roof    8192 rows of 384 f32: 25 MB at 3.35 TB/s (H100 SXM) = 8 us; not run on a GPU
// Test    tests/normalize.rs: f64 sums, absolute tolerance 1e-5 (f16: 4e-3)
#include "divide.cuh"
#include "team.cuh"
#include "types.cuh"

template <class T>
__device__ __forceinline__ void normalize(const NormalizeParams& p) {
  for (unsigned row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const size_t start = static_cast<size_t>(row) * p.columns;
    const T* x = at<const T>(p.x) + start;
    const T* residual = p.residual ? at<const T>(p.residual) + start : nullptr;
    const auto value = [&](unsigned c) { return to_float(x[c]) + (residual ? to_float(residual[c]) : 0.0f); };

    float mean = 0.0f;
    if (!p.root_mean_square) {
      float sum = 0.0f;
      for (unsigned c = threadIdx.x; c < p.columns; c += blockDim.x) sum += value(c);
      mean = OfBlock::across(warp_sum(sum), Add()) / static_cast<float>(p.columns);
    }
    float squares = 0.0f;
    for (unsigned c = threadIdx.x; c < p.columns; c += blockDim.x) {
      const float distance = value(c) - mean;
      squares = fmaf(distance, distance, squares);
    }
    const float variance = OfBlock::across(warp_sum(squares), Add()) / static_cast<float>(p.columns);
    const float factor = 1.0f / sqrtf(variance + p.epsilon);

    const unsigned first = row % p.row_period * p.row_step;
    for (unsigned c = threadIdx.x; c < p.columns; c += blockDim.x) {
      const unsigned place = first + divide(c, p.by_column);
      const float gamma = p.gamma ? to_float(at<const T>(p.gamma)[place]) : 1.0f;
      const float beta = p.beta ? to_float(at<const T>(p.beta)[place]) : 0.0f;
      at<T>(p.y)[start + c] = from_float<T>((value(c) - mean) * factor * gamma + beta);
    }
  }
}

ROTA_KERNEL(rota_normalize_f32, NormalizeParams, 256, 4) { normalize<float>(p); }
ROTA_KERNEL(rota_normalize_f16, NormalizeParams, 256, 4) { normalize<f16>(p); }
