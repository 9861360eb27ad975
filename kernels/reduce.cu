// reduce.cu: y[o, i] = reduction of x[o, :, i]; sums, extremes and their places.
// Shapes  x [outer, count, inner], y [outer, inner]; f32, f16, i32, i64; arithmetic in f32, or in 64-bit integers
// Tiling  inner = 1: a warp per output, lanes stride over the row, or ("long") a block of 256 where rows are few and long;
//         else a thread per output, neighbours read neighbours
// Cost    bytes of x and y, an operation or two per element: memory-bound
// Roof    64x4096 rows of 49: 51 MB at 3.35 TB/s (H100 SXM) = 15 us; not run on a GPU
// Test    tests/reduce.rs: plain loops, relative tolerance 1e-5; integers and places exactly
#include "divide.cuh"
#include "team.cuh"
#include "types.cuh"

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return to_float(x); }
__device__ __forceinline__ int64_t widen(int32_t x) { return x; }
__device__ __forceinline__ int64_t widen(int64_t x) { return x; }
template <class T, class V>
__device__ __forceinline__ T narrow(V x) { return static_cast<T>(x); }
template <>
__device__ __forceinline__ f16 narrow<f16, float>(float x) { return from_float<f16>(x); }

__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }
// Logarithms and roots are not taken of integers.
__device__ __forceinline__ float last_step(uint32_t reduction, float value, float shift, uint32_t count) {
  switch (reduction) {
    case ROTA_REDUCE_MEAN: return value / static_cast<float>(count);
    case ROTA_REDUCE_L2: return sqrtf(value);
    case ROTA_REDUCE_LOG_SUM: return logf(value);
    case ROTA_REDUCE_LOG_SUM_EXP: return logf(value) + shift;
    default: return value;
  }
}
__device__ __forceinline__ int64_t last_step(uint32_t reduction, int64_t value, int64_t, uint32_t count) {
  return reduction == ROTA_REDUCE_MEAN ? value / static_cast<int64_t>(count) : value;
}
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ int64_t exponential(int64_t x) { return x; }

// What has been seen so far: the folded value and, of extremes, where it was.
template <class V>
struct Seen {
  V value;
  uint32_t place;
};

__device__ __forceinline__ bool is_max(uint32_t r) { return r == ROTA_REDUCE_MAX || r == ROTA_REDUCE_ARG_MAX; }
__device__ __forceinline__ bool is_min(uint32_t r) { return r == ROTA_REDUCE_MIN || r == ROTA_REDUCE_ARG_MIN; }

template <class V>
__device__ __forceinline__ Seen<V> combine(const ReduceParams& p, Seen<V> a, Seen<V> b) {
  if (is_max(p.reduction) || is_min(p.reduction)) {
    if (b.place == ~0u || a.place == ~0u) return a.place == ~0u ? b : a;
    if (a.value != a.value || b.value != b.value) return a.value != a.value ? a : b;  // no number wins
    const bool better = is_max(p.reduction) ? b.value > a.value : b.value < a.value;
    const bool tied = b.value == a.value && (p.last ? b.place > a.place : b.place < a.place);
    return better || tied ? b : a;
  }
  return {p.reduction == ROTA_REDUCE_PRODUCT ? a.value * b.value : a.value + b.value, 0};
}

template <class V>
__device__ __forceinline__ V prepared(uint32_t reduction, V x, V shift) {
  switch (reduction) {
    case ROTA_REDUCE_SUM_SQUARE:
    case ROTA_REDUCE_L2: return x * x;
    case ROTA_REDUCE_L1: return magnitude(x);
    case ROTA_REDUCE_LOG_SUM_EXP: return exponential(x - shift);
    default: return x;
  }
}

template <class V>
__device__ __forceinline__ Seen<V> nothing(const ReduceParams& p) {
  return {p.reduction == ROTA_REDUCE_PRODUCT ? V(1) : V(0), ~0u};
}

template <class V>
__device__ __forceinline__ Seen<V> warp_combine(const ReduceParams& p, Seen<V> seen) {
#pragma unroll
  for (unsigned offset = WARP / 2; offset; offset /= 2) {
    const Seen<V> other = {__shfl_xor_sync(FULL_WARP, seen.value, offset), __shfl_xor_sync(FULL_WARP, seen.place, offset)};
    seen = combine(p, seen, other);
  }
  return seen;
}

// Reduces x[first], x[first + step], … of one output; `shift` is subtracted in exponents.
template <class T, class V>
__device__ __forceinline__ Seen<V> fold(const ReduceParams& p, const T* x, unsigned first, unsigned step, V shift) {
  Seen<V> seen = nothing<V>(p);
  for (unsigned c = first; c < p.count; c += step) {
    seen = combine(p, seen, {prepared(p.reduction, widen(x[static_cast<size_t>(c) * p.inner]), shift), c});
  }
  return seen;
}

template <class T, class V>
__device__ __forceinline__ void finish_reduction(const ReduceParams& p, unsigned output, Seen<V> seen, V shift) {
  if (p.reduction == ROTA_REDUCE_ARG_MAX || p.reduction == ROTA_REDUCE_ARG_MIN) {
    at<int64_t>(p.y)[output] = seen.place;
  } else {
    at<T>(p.y)[output] = narrow<T>(last_step(p.reduction, seen.value, shift, p.count));
  }
}

// The largest element, so that no exponential overflows.
template <class T, class V>
__device__ __forceinline__ V largest_of(const ReduceParams& p, const T* x, unsigned first, unsigned step) {
  V largest = widen(x[static_cast<size_t>(first < p.count ? first : 0) * p.inner]);
  for (unsigned c = first; c < p.count; c += step) {
    const V value = widen(x[static_cast<size_t>(c) * p.inner]);
    largest = value > largest ? value : largest;
  }
  return largest;
}

template <class T, class V, class Team>
__device__ __forceinline__ void reduce_rows(const ReduceParams& p) {
  const unsigned rank = Team::rank(), size = Team::size();
  for (unsigned output = blockIdx.x * Team::count() + Team::index(); output < p.outer; output += gridDim.x * Team::count()) {
    const T* x = at<const T>(p.x) + static_cast<size_t>(output) * p.count;
    V shift = V(0);
    if (p.reduction == ROTA_REDUCE_LOG_SUM_EXP) {
      shift = largest_of<T, V>(p, x, rank, size);
#pragma unroll
      for (unsigned offset = WARP / 2; offset; offset /= 2) {
        const V other = __shfl_xor_sync(FULL_WARP, shift, offset);
        shift = other > shift ? other : shift;
      }
      shift = Team::across(shift, [](V a, V b) { return b > a ? b : a; });
    }
    const Seen<V> folded = warp_combine(p, fold(p, x, rank, size, shift));
    const Seen<V> seen = Team::across(folded, [&](Seen<V> a, Seen<V> b) { return combine(p, a, b); });
    if (rank == 0) finish_reduction<T>(p, output, seen, shift);
  }
}

template <class T, class V>
__device__ __forceinline__ void reduce_columns(const ReduceParams& p) {
  const unsigned outputs = p.outer * p.inner;
  for (unsigned output = blockIdx.x * blockDim.x + threadIdx.x; output < outputs; output += gridDim.x * blockDim.x) {
    const unsigned o = divide(output, p.by_inner), i = output - o * p.inner;
    const T* x = at<const T>(p.x) + static_cast<size_t>(o) * p.count * p.inner + i;
    const V shift = p.reduction == ROTA_REDUCE_LOG_SUM_EXP ? largest_of<T, V>(p, x, 0, 1) : V(0);
    finish_reduction<T>(p, output, fold(p, x, 0, 1, shift), shift);
  }
}

#define REDUCE(name, T, V)                                                              \
  ROTA_KERNEL(rota_reduce_rows_##name, ReduceParams, 256, 4) { reduce_rows<T, V, OfWarp>(p); }   \
  ROTA_KERNEL(rota_reduce_long_##name, ReduceParams, 256, 4) { reduce_rows<T, V, OfBlock>(p); }  \
  ROTA_KERNEL(rota_reduce_columns_##name, ReduceParams, 256, 4) { reduce_columns<T, V>(p); }
REDUCE(f32, float, float)
REDUCE(f16, f16, float)
REDUCE(i32, int32_t, int64_t)
REDUCE(i64, int64_t, int64_t)
