// resize.cu: pictures at another size, separable in rows and columns.
//
// Which inputs an output row or column takes, with which weights, is in two tables that the host makes (src/resize.rs has ONNX's
// modes), so one kernel serves nearest (1 tap), linear (2) and cubic (4).
// Shapes  x [planes, h, w, inner], y [planes, oh, ow, inner] as pool.cu; f32 or f16; tables [oh, taps_y] and [ow, taps_x]
// Tiling  256 threads, one output each; the tables stay in L1
// Cost    bytes of x and y, 2*taps flop per output: memory-bound
// Roof    96 planes of 80x80 to 160x160, batch 8: 98 MB at 3.35 TB/s (H100 SXM) = 29 us; not run on a GPU
// Test    tests/resize.rs: ONNX's formulas, absolute tolerance 1e-5 (f16: 2e-3)
#include "divide.cuh"
#include "types.cuh"

template <class T>
__device__ __forceinline__ void resize(const ResizeParams& p) {
  for (unsigned index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += gridDim.x * blockDim.x) {
    const unsigned pixel = divide(index, p.by_inner), inner = p.by_inner.divisor;
    const unsigned row = divide(pixel, p.by_out_width), ox = pixel - row * p.by_out_width.divisor;
    const unsigned plane = divide(row, p.by_out_height), oy = row - plane * p.by_out_height.divisor;
    const T* x = at<const T>(p.x) + static_cast<size_t>(plane) * p.height * p.width * inner + (index - pixel * inner);
    float sum = 0.0f;
    for (unsigned ty = 0; ty < p.taps_y; ty++) {
      const T* line = x + static_cast<size_t>(at<const uint32_t>(p.rows)[oy * p.taps_y + ty]) * p.width * inner;
      const float down = at<const float>(p.row_weights)[oy * p.taps_y + ty];
      for (unsigned tx = 0; tx < p.taps_x; tx++) {
        const unsigned place = ox * p.taps_x + tx;
        sum += down * at<const float>(p.column_weights)[place] * to_float(line[static_cast<size_t>(at<const uint32_t>(p.columns)[place]) * inner]);
      }
    }
    at<T>(p.y)[index] = from_float<T>(sum);
  }
}

ROTA_KERNEL(rota_resize_f32, ResizeParams, 256, 4) { resize<float>(p); }
ROTA_KERNEL(rota_resize_f16, ResizeParams, 256, 4) { resize<f16>(p); }
