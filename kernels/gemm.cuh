// gemm.cuh: matrix products, whatever multiplies their tiles.
#pragma once

#include "epilogue.cuh"
#include "readers.cuh"

// One product without batches; fields as in GemmParams.
struct Product {
  uint64_t a, b, c, bias, residual;
  unsigned rows, columns, depth, a_row, a_depth, b_depth, b_column, c_row, a_vector, b_vector;
};

// `p` is a Product, or a GroupedProblem, whose fields have the same names. With `partial`, [rows][columns], the sums are left there.
template <class Tile, class P>
__device__ __forceinline__ void product_tile(const P& p, const Epilogue& epilogue, unsigned first_row, unsigned first_column,
                                             Depths depths, float* partial) {
  using T = typename Tile::Element;
  typename Tile::Sums sums = {};
  Tile::multiply(Strided<T>{at<const T>(p.a), p.rows, p.depth, p.a_row, p.a_depth, p.a_vector != 0},
                 Strided<T>{at<const T>(p.b), p.columns, p.depth, p.b_column, p.b_depth, p.b_vector != 0}, first_row,
                 first_column, depths, sums);
  Tile::store(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
    const size_t row = first_row + tile_row, column = first_column + tile_column;
    if (row >= p.rows || column >= p.columns) return;
    if (partial) {
      partial[row * p.columns + column] = sum;
      return;
    }
    const size_t place = row * p.c_row + column;
    const T* bias = p.bias ? at<const T>(p.bias) + row * epilogue.bias_row + column * epilogue.bias_column : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
    at<T>(p.c)[place] = from_float<T>(finish(epilogue, sum, bias, residual));
  });
}

// Where the sums of a batch and of this block's part of the depth go, if they are left as they are.
__device__ __forceinline__ float* partial_of(const GemmParams& p, unsigned batch) {
  const size_t matrix = static_cast<size_t>(blockIdx.z) * p.batch_outer * p.batch_inner + batch;
  return p.partial ? at<float>(p.partial) + matrix * p.rows * p.columns : nullptr;
}

template <class Tile>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  using T = typename Tile::Element;
  const unsigned tiles_across = (p.columns + Tile::COLUMNS - 1) / Tile::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * Tile::ROWS, first_column = blockIdx.x % tiles_across * Tile::COLUMNS;
  const unsigned batches = p.batch_outer * p.batch_inner;
  for (unsigned batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    const uint64_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    const uint64_t shift = (outer * p.c_outer + inner * p.c_inner) * sizeof(T);
    product_tile<Tile>(Product{p.a + (outer * p.a_outer + inner * p.a_inner) * sizeof(T),
                               p.b + (outer * p.b_outer + inner * p.b_inner) * sizeof(T), p.c + shift, p.bias,
                               p.residual ? p.residual + shift : 0, p.rows, p.columns, p.depth, p.a_row, p.a_depth, p.b_depth,
                               p.b_column, p.c_row, p.a_vector, p.b_vector},
                       p.epilogue, first_row, first_column, own_depths(p.depth, p.split_depth), partial_of(p, batch));
  }
}
