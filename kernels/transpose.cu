// transpose.cu: y[o, c, r] = x[o, r, c]: permutations that move the last axis.
//
// A tile goes through shared memory, so that both sides are read and written along their own rows; a column more
// than the tile is wide keeps the transposed accesses in different banks.
// Shapes  rows x columns behind up to 4 outer dimensions of any strides; elements of 1, 2, 4 or 8 bytes
// Tiling  256 threads move 32 x 32, four rows of eight warps
// Cost    twice the bytes moved: memory-bound
// Roof    64 MB at 3.35 TB/s (H100 SXM) = 38 us; not run on a GPU
// Test    tests/layout.rs: index by index, exactly
#include "divide.cuh"

constexpr unsigned SIDE = 32, ROWS_AT_ONCE = 8;

template <class T>
__device__ __forceinline__ void transpose(const TransposeParams& p) {
  using Square = T[SIDE][SIDE + 1];
  ROTA_SHARED(Square, tile);
  const unsigned across = (p.columns + SIDE - 1) / SIDE;
  const unsigned row = blockIdx.x / across * SIDE, column = blockIdx.x % across * SIDE;
  const unsigned lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;

  for (unsigned outer = blockIdx.y; outer < p.outers; outer += gridDim.y) {
    size_t from = 0, to = 0;
    unsigned rest = outer;
#pragma unroll 1
    for (unsigned axis = p.rank; axis-- > 0;) {
      const unsigned next = divide(rest, p.dims[axis]), place = rest - next * p.dims[axis].divisor;
      from += static_cast<size_t>(place) * p.x_strides[axis];
      to += static_cast<size_t>(place) * p.y_strides[axis];
      rest = next;
    }
    const T* x = at<const T>(p.x) + from;
    T* y = at<T>(p.y) + to;
#pragma unroll
    for (unsigned i = line; i < SIDE; i += ROWS_AT_ONCE) {
      if (row + i < p.rows && column + lane < p.columns) {
        tile[i][lane] = x[static_cast<size_t>(row + i) * p.x_row + column + lane];
      }
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = line; i < SIDE; i += ROWS_AT_ONCE) {
      if (column + i < p.columns && row + lane < p.rows) {
        y[static_cast<size_t>(column + i) * p.y_column + row + lane] = tile[lane][i];
      }
    }
    __syncthreads();
  }
}

ROTA_KERNEL(rota_transpose_1, TransposeParams, 256, 4) { transpose<uint8_t>(p); }
ROTA_KERNEL(rota_transpose_2, TransposeParams, 256, 4) { transpose<uint16_t>(p); }
ROTA_KERNEL(rota_transpose_4, TransposeParams, 256, 4) { transpose<uint32_t>(p); }
ROTA_KERNEL(rota_transpose_8, TransposeParams, 256, 4) { transpose<uint64_t>(p); }
