// grouped.cu: many matrix products of different weights, rows and sizes in one launch: what the members of a prefix group have behind
// their shared part.
//
// Problems are in a table that the kernel reads when it runs (pinned or device memory), so that a recorded graph serves batches of any
// composition. The grid is as large as the largest problem can get; blocks past a problem's tiles end at once.
// Shapes  per problem as gemm.cu without batches; f32, tf32 or f16
// Tiling  64x64 (f32: 256 threads, else 128) or flat ones of 16x64 (f32) and 32x64; blockIdx.y is the problem
// Cost    sum of the problems' bytes and flop; about 1 us for each wave of blocks that find nothing to do
// Roof    9 heads of 1280 to 64, 32 rows in all: 3.0 MB at 3.35 TB/s (H100 SXM) = 0.9 us; not run on a GPU
// Test    tests/grouped.rs: equal to the bit to one launch of gemm.cu for each problem
#include "gemm.cuh"
#include "mma_tile.cuh"
#include "simt_tile.cuh"

template <class Tile>
__device__ __forceinline__ void grouped(const GroupedParams& p) {
  constexpr unsigned WORDS = sizeof(GroupedProblem) / sizeof(uint32_t);
  using Words = uint32_t[WORDS];
  ROTA_SHARED(Words, words);  // one problem: in registers its fields would crowd out the sums
  const GroupedProblem& g = *reinterpret_cast<const GroupedProblem*>(words);
  for (unsigned index = blockIdx.y; index < p.count; index += gridDim.y) {
    __syncthreads();  // the last problem has been used
    const uint32_t* entry = reinterpret_cast<const uint32_t*>(at<const GroupedProblem>(p.problems) + index);
    for (unsigned word = threadIdx.x; word < WORDS; word += Tile::THREADS) words[word] = entry[word];
    __syncthreads();
    const unsigned down = (g.rows + Tile::ROWS - 1) / Tile::ROWS, across = (g.columns + Tile::COLUMNS - 1) / Tile::COLUMNS;
    for (unsigned tile = blockIdx.x; tile < down * across; tile += gridDim.x) {
      product_tile<Tile>(g, g.epilogue, tile / across * Tile::ROWS, tile % across * Tile::COLUMNS, {0, g.depth}, nullptr);
    }
  }
}

ROTA_KERNEL(rota_grouped_f32_64x64, GroupedParams, 256, 2) { grouped<SimtTile<64, 64, 16, 4, 4>>(p); }
ROTA_KERNEL(rota_grouped_f32_16x64, GroupedParams, 128, 2) { grouped<SimtTile<16, 64, 32, 4, 4, 2>>(p); }
ROTA_KERNEL(rota_grouped_tf32_64x64, GroupedParams, 128, 3) { grouped<MmaTile<Tf32, 2, 2>>(p); }
ROTA_KERNEL(rota_grouped_tf32_32x64, GroupedParams, 64, 6) { grouped<MmaTile<Tf32, 1, 2>>(p); }
ROTA_KERNEL(rota_grouped_f16_64x64, GroupedParams, 128, 3) { grouped<MmaTile<HalfPairs, 2, 2>>(p); }
ROTA_KERNEL(rota_grouped_f16_32x64, GroupedParams, 64, 6) { grouped<MmaTile<HalfPairs, 1, 2>>(p); }
