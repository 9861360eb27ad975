// split.cu: y = epilogue(sum of parts): the end of a product whose depth was shared among blocks.
//
// The parts are added in their order, so that results are the same from run to run; a second launch, since the plainer alternative of letting
// the last block of a tile add up needs fences and counters, and leaves the other blocks idle.
// Shapes  partial f32 [parts, i, j, k, l], y [i, j, k, l] at any strides, f32, f16 or bf16
// Tiling  256 threads, an element each: neighbours read neighbours, the parts' loads are independent of each other
// Cost    4*parts*count bytes and those of y, parts*count flop: memory-bound, mostly out of L2, where the parts have just been written
// Roof    16 parts of 512x49 f32: 1.7 MB at 3.35 TB/s (H100 SXM) = 0.5 us; not run on a GPU
// Test    tests/gemm.rs and tests/conv.rs: every tile split, as the whole product
#include "divide.cuh"
#include "epilogue.cuh"

template <class T>
__device__ __forceinline__ void split(const SplitParams& p) {
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += gridDim.x * blockDim.x) {
    const float* partial = at<const float>(p.partial) + index;
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned part = 0; part < p.parts; part++) sum += partial[static_cast<size_t>(part) * p.count];

    unsigned rest = index, bias_place = 0;
    size_t place = 0;
#pragma unroll
    for (unsigned axis = 4; axis-- > 0;) {
      const unsigned above = divide(rest, p.dims[axis]), at_axis = rest - above * p.dims[axis].divisor;
      place += at_axis * p.y_strides[axis];
      bias_place += at_axis * p.bias_strides[axis];
      rest = above;
    }
    const T* bias = p.bias ? at<const T>(p.bias) + bias_place : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
    at<T>(p.y)[place] = from_float<T>(finish(p.epilogue, sum, bias, residual));
  }
}

ROTA_KERNEL(rota_split_f32, SplitParams, 256, 4) { split<float>(p); }
ROTA_KERNEL(rota_split_f16, SplitParams, 256, 4) { split<f16>(p); }
ROTA_KERNEL(rota_split_bf16, SplitParams, 256, 4) { split<bf16>(p); }
