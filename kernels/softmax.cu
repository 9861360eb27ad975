// softmax.cu: y[o,c,i] = exp(x[o,c,i] - max) / sum over c; one warp per row (o,i), or a block where rows are few and long.
// Shapes  x, y [outer, columns, inner] row-major, f32 or f16; any size
// Tiling  a block of 128 threads has 4 rows; "long": one of 256 has a row; the row is read three times, the second and third time from L1 or L2
// Cost    2*bytes of x, ~5 flop per element: memory-bound
// Roof    8192x1024 f32 at 3.35 TB/s (H100 SXM) = 20 us; not run on a GPU
// Test    tests/softmax.rs, absolute tolerance 1e-6 (f16: 1e-3)
#include "team.cuh"
#include "types.cuh"

template <class T, class Team>
__device__ __forceinline__ void softmax(const SoftmaxParams& p) {
  const unsigned rows = p.outer * p.inner;
  const unsigned row = blockIdx.x * Team::count() + Team::index();
  if (row >= rows) return;  // whole teams leave; nothing below waits for another

  const size_t start = static_cast<size_t>(row / p.inner) * p.columns * p.inner + row % p.inner;
  const T* __restrict__ x = at<const T>(p.x) + start;
  T* __restrict__ y = at<T>(p.y) + start;
  const size_t step = p.inner;

  float largest = -INFINITY;
  for (unsigned c = Team::rank(); c < p.columns; c += Team::size()) largest = fmaxf(largest, to_float(x[c * step]));
  largest = Team::across(warp_max(largest), Larger());

  float sum = 0.0f;
  for (unsigned c = Team::rank(); c < p.columns; c += Team::size()) sum += expf(to_float(x[c * step]) - largest);
  sum = Team::across(warp_sum(sum), Add());

  const float factor = 1.0f / sum, shift = largest + logf(sum);
  for (unsigned c = Team::rank(); c < p.columns; c += Team::size()) {
    const float value = to_float(x[c * step]);
    y[c * step] = from_float<T>(p.log ? value - shift : expf(value - largest) * factor);
  }
}

ROTA_KERNEL(rota_softmax_f32, SoftmaxParams, 256, 4) { softmax<float, OfWarp>(p); }
ROTA_KERNEL(rota_softmax_f16, SoftmaxParams, 256, 4) { softmax<f16, OfWarp>(p); }
ROTA_KERNEL(rota_softmax_long_f32, SoftmaxParams, 256, 4) { softmax<float, OfBlock>(p); }
ROTA_KERNEL(rota_softmax_long_f16, SoftmaxParams, 256, 4) { softmax<f16, OfBlock>(p); }
