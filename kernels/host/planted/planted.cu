// planted.cu: kernels that are wrong on purpose, one mistake each; tests/check.rs shows that each is caught. No program has them.
// Shapes  x, y [columns] f32, 64 threads, one block unless said; SoftmaxParams
// Tiling  a thread per element
// Cost    none worth telling
// Roof    none
// Test    tests/check.rs
#include "copies.cuh"

using Row = float[64];

ROTA_KERNEL(planted_right, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  __syncthreads();
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}

ROTA_KERNEL(planted_missing_barrier, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = 0.0f;
  __syncthreads();
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}

// The second use of the array begins before all have ended the first.
ROTA_KERNEL(planted_missing_second_barrier, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  __syncthreads();
  const float first = row[63 - threadIdx.x];
  row[threadIdx.x] = 2.0f * first;
  __syncthreads();
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}

// A shuffle brings the lanes together, but does not order their accesses to memory.
ROTA_KERNEL(planted_shuffle_for_a_barrier, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  const float zero = 0.0f * __shfl_xor_sync(FULL_WARP, 1.0f, 1);
  at<float>(p.y)[threadIdx.x] = row[threadIdx.x ^ 1] + zero;
}

ROTA_KERNEL(planted_warp_barrier_is_enough, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  __syncwarp();
  at<float>(p.y)[threadIdx.x] = row[threadIdx.x ^ 1];
}

ROTA_KERNEL(planted_warp_barrier_is_not_enough, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = 0.0f;
  __syncthreads();
  row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  __syncwarp();
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}

ROTA_KERNEL(planted_reads_past_the_end, SoftmaxParams, 64, 1) {
  at<float>(p.y)[threadIdx.x] = at<const float>(p.x)[threadIdx.x + 1];
}

ROTA_KERNEL(planted_writes_past_the_end, SoftmaxParams, 64, 1) { at<float>(p.y)[threadIdx.x + 1] = 0.0f; }

ROTA_KERNEL(planted_past_the_end_of_shared_memory, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x + 1] = at<const float>(p.x)[threadIdx.x];
  __syncthreads();
  at<float>(p.y)[threadIdx.x] = row[threadIdx.x];
}

ROTA_KERNEL(planted_uninitialised_shared_memory, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  if (threadIdx.x != 7) row[threadIdx.x] = at<const float>(p.x)[threadIdx.x];
  __syncthreads();
  at<float>(p.y)[threadIdx.x] = row[threadIdx.x];
}

ROTA_KERNEL(planted_uninitialised_output, SoftmaxParams, 64, 1) { at<float>(p.y)[threadIdx.x] += at<const float>(p.x)[threadIdx.x]; }

// Two blocks of 32 threads that should each write their own half.
ROTA_KERNEL(planted_wrong_stride, SoftmaxParams, 64, 1) {
  const unsigned index = blockIdx.x * (blockDim.x - 1) + threadIdx.x;
  at<float>(p.y)[index] = at<const float>(p.x)[index];
}

ROTA_KERNEL(planted_divergent_barrier, SoftmaxParams, 64, 1) {
  if (threadIdx.x < 40) __syncthreads();
  at<float>(p.y)[threadIdx.x] = 0.0f;
}

ROTA_KERNEL(planted_two_barriers_for_one, SoftmaxParams, 64, 1) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  at<float>(p.y)[threadIdx.x] = 0.0f;
}

ROTA_KERNEL(planted_lanes_missing, SoftmaxParams, 64, 1) {
  if (threadIdx.x < 50) at<float>(p.y)[threadIdx.x] = warp_sum(at<const float>(p.x)[threadIdx.x]);
}

// All threads mark the same word; without an atomic that is a race, with one it is not.
ROTA_KERNEL(planted_plain_flag, SoftmaxParams, 64, 1) { at<float>(p.y)[0] = at<const float>(p.x)[threadIdx.x]; }
ROTA_KERNEL(planted_atomic_flag, SoftmaxParams, 64, 1) { atomicOr(at<unsigned>(p.x), 1u); }

// 16 bytes a thread, copied to where another reads them.
template <bool WAITS>
__device__ __forceinline__ void copies(const SoftmaxParams& p) {
  ROTA_SHARED(Row, row);
  if (threadIdx.x < 16) begin_copy(row + threadIdx.x * 4, at<const float>(p.x) + threadIdx.x * 4, true);
  close_copies();
  if (WAITS) wait_for_copies<0>();
  __syncthreads();
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}
ROTA_KERNEL(planted_copies_waited_for, SoftmaxParams, 64, 1) { copies<true>(p); }
ROTA_KERNEL(planted_copies_not_waited_for, SoftmaxParams, 64, 1) { copies<false>(p); }

// The wait is the thread's own: without a barrier behind it, others may not read yet.
ROTA_KERNEL(planted_copies_without_a_barrier, SoftmaxParams, 64, 1) {
  ROTA_SHARED(Row, row);
  row[threadIdx.x] = 0.0f;
  __syncthreads();
  if (threadIdx.x < 16) begin_copy(row + threadIdx.x * 4, at<const float>(p.x) + threadIdx.x * 4, true);
  close_copies();
  wait_for_copies<0>();
  at<float>(p.y)[threadIdx.x] = row[63 - threadIdx.x];
}
