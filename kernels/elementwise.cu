// elementwise.cu: output[i] = a fused expression of up to 8 broadcast inputs, by a small interpreter.
//
// The expression is a list of steps on an accumulator (params.h). All threads take the same step at the same time, so a step costs its
// decoding once per four elements; the list stays in constant memory, and saved values in a shared-memory
// column of the thread's own, since an indexed array of registers would go to local memory.
// Shapes  output contiguous, rank <= 6 after joining dimensions; any types; f32 arithmetic, or 64-bit integers
// Tiling  128 threads, four neighbouring elements each; 16-byte accesses where input and output lie alike
// Cost    bytes of inputs and output, a flop per step and element: memory-bound for short chains
// Roof    16M f32, one input: 128 MB at 3.35 TB/s (H100 SXM) = 40 us; not run on a GPU
// Test    tests/elementwise.rs: each step against its formula, relative tolerance 2e-6; integers exactly
#include "divide.cuh"
#include "epilogue.cuh"

constexpr unsigned THREADS = 128, EACH = 4;

template <class V, class T>
__device__ __forceinline__ V value_of(T x) { return static_cast<V>(x); }
template <> __device__ __forceinline__ float value_of<float, f16>(f16 x) { return to_float(x); }
template <> __device__ __forceinline__ float value_of<float, bf16>(bf16 x) { return to_float(x); }
template <> __device__ __forceinline__ int64_t value_of<int64_t, f16>(f16 x) { return static_cast<int64_t>(to_float(x)); }
template <> __device__ __forceinline__ int64_t value_of<int64_t, bf16>(bf16 x) { return static_cast<int64_t>(to_float(x)); }

template <class T, class V>
__device__ __forceinline__ T element_of(V x) { return static_cast<T>(x); }
template <> __device__ __forceinline__ f16 element_of<f16, float>(float x) { return from_float<f16>(x); }
template <> __device__ __forceinline__ bf16 element_of<bf16, float>(float x) { return from_float<bf16>(x); }
template <> __device__ __forceinline__ f16 element_of<f16, int64_t>(int64_t x) { return from_float<f16>(static_cast<float>(x)); }
template <> __device__ __forceinline__ bf16 element_of<bf16, int64_t>(int64_t x) { return from_float<bf16>(static_cast<float>(x)); }
// What a float out of an integer's range becomes differs between machines; through 64 bits it wraps the same everywhere.
template <> __device__ __forceinline__ int8_t element_of<int8_t, float>(float x) { return static_cast<int8_t>(static_cast<int64_t>(x)); }
template <> __device__ __forceinline__ uint8_t element_of<uint8_t, float>(float x) { return static_cast<uint8_t>(static_cast<int64_t>(x)); }
template <> __device__ __forceinline__ int16_t element_of<int16_t, float>(float x) { return static_cast<int16_t>(static_cast<int64_t>(x)); }
template <> __device__ __forceinline__ uint16_t element_of<uint16_t, float>(float x) { return static_cast<uint16_t>(static_cast<int64_t>(x)); }
template <> __device__ __forceinline__ uint32_t element_of<uint32_t, float>(float x) { return static_cast<uint32_t>(static_cast<int64_t>(x)); }

// Calls `body` with a null pointer of the C++ type that `type` names.
template <class Body>
__device__ __forceinline__ void with_type(uint32_t type, const Body& body) {
  switch (type) {
    case ROTA_F32: return body(static_cast<float*>(nullptr));
    case ROTA_F16: return body(static_cast<f16*>(nullptr));
    case ROTA_BF16: return body(static_cast<bf16*>(nullptr));
    case ROTA_I8: return body(static_cast<int8_t*>(nullptr));
    case ROTA_BOOL:
    case ROTA_U8: return body(static_cast<uint8_t*>(nullptr));
    case ROTA_I16: return body(static_cast<int16_t*>(nullptr));
    case ROTA_U16: return body(static_cast<uint16_t*>(nullptr));
    case ROTA_I32: return body(static_cast<int32_t*>(nullptr));
    case ROTA_U32: return body(static_cast<uint32_t*>(nullptr));
    default: return body(static_cast<int64_t*>(nullptr));
  }
}

// The four elements that this thread computes.
struct Place {
  unsigned first, count;  // of the output; how many of the four there are
};

// Where output element `index` is in input `input`.
__device__ __forceinline__ size_t offset_of(const ElementwiseParams& p, unsigned input, unsigned index) {
  size_t offset = 0;
#pragma unroll 1
  for (unsigned axis = p.rank; axis-- > 0;) {
    const unsigned rest = divide(index, p.dims[axis]);
    offset += static_cast<size_t>(index - rest * p.dims[axis].divisor) * p.strides[input][axis];
    index = rest;
  }
  return offset;
}

template <class V>
__device__ __forceinline__ void read_input(const ElementwiseParams& p, unsigned input, const Place& place, V (&out)[EACH]) {
  const uint32_t mode = p.modes[input];
  size_t offset[EACH] = {};
  if (mode == ROTA_STRIDED && p.quads) {
    offset[0] = offset_of(p, input, place.first);
    const unsigned step = p.strides[input][p.rank - 1];
#pragma unroll
    for (unsigned i = 1; i < EACH; i++) offset[i] = offset[0] + i * step;
  } else if (mode == ROTA_STRIDED) {
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) offset[i] = i < place.count ? offset_of(p, input, place.first + i) : 0;
  } else if (mode == ROTA_CONTIGUOUS) {
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) offset[i] = i < place.count ? place.first + i : place.first;
  }
  with_type(p.input_types[input], [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* source = at<const T>(p.inputs[input]);
    if (mode == ROTA_CONTIGUOUS && place.count == EACH) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(source + place.first);
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) out[i] = value_of<V>(four.v[i]);
    } else {
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) out[i] = value_of<V>(source[offset[i]]);
    }
  });
}

template <class V>
__device__ __forceinline__ void write_output(const ElementwiseParams& p, const Place& place, const V (&x)[EACH]) {
  with_type(p.output_type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* target = at<T>(p.output) + place.first;
    Four<T> four;
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
      four.v[i] = p.output_type == ROTA_BOOL ? element_of<T>(static_cast<V>(x[i] != V(0))) : element_of<T>(x[i]);
    }
    if (place.count == EACH && p.output_vector) {
      *reinterpret_cast<Four<T>*>(target) = four;
    } else {
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) {
        if (i < place.count) target[i] = four.v[i];
      }
    }
  });
}

__device__ __forceinline__ float quotient(float x, float y) { return x / y; }
__device__ __forceinline__ int64_t quotient(int64_t x, int64_t y) { return y == 0 ? 0 : (y == -1 ? -x : x / y); }
__device__ __forceinline__ float remainder_of(float x, float y) { return fmodf(x, y); }
__device__ __forceinline__ int64_t remainder_of(int64_t x, int64_t y) { return y == 0 || y == -1 ? 0 : x % y; }
__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ int64_t power(int64_t x, int64_t y) {
  if (y < 0) return x == 1 ? 1 : (x == -1 ? (y & 1 ? -1 : 1) : 0);
  int64_t result = 1;
  for (; y; y >>= 1, x *= x) {
    if (y & 1) result *= x;
  }
  return result;
}
template <class V>
__device__ __forceinline__ V modulo(V x, V y) {
  const V rest = remainder_of(x, y);
  return rest != V(0) && ((rest < V(0)) != (y < V(0))) ? rest + y : rest;
}
// NaN in, NaN out, as ONNX has it; fminf and fmaxf would hide it.
template <class V>
__device__ __forceinline__ V least(V x, V y) { return x < y || x != x ? x : y; }
template <class V>
__device__ __forceinline__ V largest(V x, V y) { return x > y || x != x ? x : y; }

// sin(x - h pi) for an h that leaves at most half pi; good for |x| < 1e5. The library's own sine keeps a table for larger x
// in local memory. Pi is in three parts, of which the first two times h are exact.
__device__ __forceinline__ float sine_of_rest(float x, float h) {
  float rest = fmaf(h, -3.140625f, x);
  rest = fmaf(h, -9.675025939941406e-4f, rest);
  rest = fmaf(h, -1.5099580252808664e-7f, rest);
  return sinpif(rest * 0.318309886f);
}
__device__ __forceinline__ float sine(float x) {
  const float k = rintf(x * 0.318309886f);
  return static_cast<int>(k) & 1 ? -sine_of_rest(x, k) : sine_of_rest(x, k);
}
// cos(x) = sin(x + pi/2): the whole number of turns lies half a turn off, so that small cosines keep their digits.
__device__ __forceinline__ float cosine(float x) {
  const float k = rintf(x * 0.318309886f - 0.5f);
  return static_cast<int>(k) & 1 ? sine_of_rest(x, k + 0.5f) : -sine_of_rest(x, k + 0.5f);
}

template <class V>
__device__ __forceinline__ V common_step(uint32_t op, V x, V y, V z) {
  switch (op) {
    case ROTA_OP_LOAD: return y;
    case ROTA_OP_ADD: return x + y;
    case ROTA_OP_SUB: return x - y;
    case ROTA_OP_SUB_FROM: return y - x;
    case ROTA_OP_MUL: return x * y;
    case ROTA_OP_DIV: return quotient(x, y);
    case ROTA_OP_DIV_INTO: return quotient(y, x);
    case ROTA_OP_POW: return power(x, y);
    case ROTA_OP_POW_OF: return power(y, x);
    case ROTA_OP_MIN: return least(x, y);
    case ROTA_OP_MAX: return largest(x, y);
    case ROTA_OP_MOD: return modulo(x, y);
    case ROTA_OP_MOD_OF: return modulo(y, x);
    case ROTA_OP_FMOD: return remainder_of(x, y);
    case ROTA_OP_FMOD_OF: return remainder_of(y, x);
    case ROTA_OP_MUL_ADD: return x * y + z;
    case ROTA_OP_CLIP: return least(largest(x, y), z);
    case ROTA_OP_SELECT: return x != V(0) ? y : z;
    case ROTA_OP_EQUAL: return V(x == y);
    case ROTA_OP_LESS: return V(x < y);
    case ROTA_OP_LESS_EQUAL: return V(x <= y);
    case ROTA_OP_GREATER: return V(x > y);
    case ROTA_OP_GREATER_EQUAL: return V(x >= y);
    case ROTA_OP_AND: return V(x != V(0) && y != V(0));
    case ROTA_OP_OR: return V(x != V(0) || y != V(0));
    case ROTA_OP_XOR: return V((x != V(0)) != (y != V(0)));
    case ROTA_OP_NOT: return V(x == V(0));
    case ROTA_OP_NEG: return -x;
    case ROTA_OP_ABS: return x < V(0) ? -x : (x == V(0) ? V(0) : x);
    case ROTA_OP_SIGN: return x != x ? x : V(x > V(0)) - V(x < V(0));
    default: return x;
  }
}

__device__ __forceinline__ float step_of(uint32_t op, float x, float y, float z) {
  switch (op) {
    case ROTA_OP_SQRT: return sqrtf(x);
    case ROTA_OP_RECIPROCAL: return 1.0f / x;
    case ROTA_OP_EXP: return expf(x);
    case ROTA_OP_LOG: return logf(x);
    case ROTA_OP_FLOOR: return floorf(x);
    case ROTA_OP_CEIL: return ceilf(x);
    case ROTA_OP_ROUND: return rintf(x);
    case ROTA_OP_TRUNC: return truncf(x);
    case ROTA_OP_ERF: return erff(x);
    case ROTA_OP_TANH: return tanhf(x);
    case ROTA_OP_SIGMOID: return sigmoid(x);
    case ROTA_OP_SOFTPLUS: return x > 20.0f ? x : log1pf(expf(x));
    case ROTA_OP_SOFTSIGN: return x / (1.0f + fabsf(x));
    case ROTA_OP_HARD_SIGMOID: return fminf(fmaxf(y * x + z, 0.0f), 1.0f);
    case ROTA_OP_HARD_SWISH: return x * fminf(fmaxf(y * x + z, 0.0f), 1.0f);
    case ROTA_OP_SWISH: return x * sigmoid(x);
    case ROTA_OP_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ROTA_OP_PRELU: return x < 0.0f ? y * x : x;
    case ROTA_OP_ELU: return x < 0.0f ? y * expm1f(x) : x;
    case ROTA_OP_SIN: return sine(x);
    case ROTA_OP_COS: return cosine(x);
    case ROTA_OP_TAN: return sine(x) / cosine(x);
    case ROTA_OP_ASIN: return asinf(x);
    case ROTA_OP_ACOS: return acosf(x);
    case ROTA_OP_ATAN: return atanf(x);
    case ROTA_OP_SINH: return sinhf(x);
    case ROTA_OP_COSH: return coshf(x);
    case ROTA_OP_ASINH: return asinhf(x);
    case ROTA_OP_ACOSH: return acoshf(x);
    case ROTA_OP_ATANH: return atanhf(x);
    case ROTA_OP_IS_NAN: return x != x ? 1.0f : 0.0f;
    case ROTA_OP_IS_INF: return (x == INFINITY && y != 0.0f) || (x == -INFINITY && z != 0.0f) ? 1.0f : 0.0f;
    default: return common_step(op, x, y, z);
  }
}

__device__ __forceinline__ int64_t step_of(uint32_t op, int64_t x, int64_t y, int64_t z) {
  switch (op) {
    case ROTA_OP_BIT_AND: return x & y;
    case ROTA_OP_BIT_OR: return x | y;
    case ROTA_OP_BIT_XOR: return x ^ y;
    case ROTA_OP_BIT_NOT: return ~x;
    case ROTA_OP_SHIFT_LEFT: return static_cast<uint64_t>(y) < 64 ? static_cast<int64_t>(static_cast<uint64_t>(x) << y) : 0;
    case ROTA_OP_SHIFT_RIGHT: return static_cast<uint64_t>(y) < 64 ? static_cast<int64_t>(static_cast<uint64_t>(x) >> y) : 0;
    default: return common_step(op, x, y, z);
  }
}

__device__ __forceinline__ float constant(int64_t bits, float) { return __uint_as_float(static_cast<unsigned>(bits)); }
__device__ __forceinline__ int64_t constant(int64_t bits, int64_t) { return bits; }

// A thread's saved values; [slot][element][thread], so that a warp's accesses hit all banks once.
template <class V>
using Slots = V[ROTA_SLOTS][EACH][THREADS];

template <class V>
__device__ __forceinline__ void operand(const ElementwiseParams& p, uint32_t source, int64_t bits, const Place& place,
                                        const Slots<V>& slots, V (&out)[EACH]) {
  const unsigned index = source % 256;
  switch (source / 256) {
    case ROTA_INPUT: return read_input(p, index, place, out);
    case ROTA_SLOT:
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) out[i] = slots[index][i][threadIdx.x];
      return;
    default:
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) out[i] = constant(bits, V());
  }
}

template <class V>
__device__ __forceinline__ void elementwise(const ElementwiseParams& p) {
  ROTA_SHARED(Slots<V>, slots);
  const unsigned quads = (p.count + EACH - 1) / EACH;
  for (unsigned quad = blockIdx.x * THREADS + threadIdx.x; quad < quads; quad += gridDim.x * THREADS) {
    const Place place = {quad * EACH, p.count - quad * EACH < EACH ? p.count - quad * EACH : EACH};
    V x[EACH] = {}, y[EACH] = {}, z[EACH] = {};
#pragma unroll 1
    for (unsigned s = 0; s < p.steps; s++) {
      const Step& step = p.program[s];
      if (step.op == ROTA_OP_SAVE) {
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) slots[step.y % 256][i][threadIdx.x] = x[i];
        continue;
      }
      // One reader in a loop and not two calls of it, which would double the code.
#pragma unroll 1
      for (unsigned side = 0; side < 2; side++) {
        const uint32_t source = side ? step.z : step.y;
        if (source == ROTA_NOTHING) continue;
        V value[EACH];
        operand(p, source, side ? step.z_constant : step.y_constant, place, slots, value);
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) (side ? z[i] : y[i]) = value[i];
      }
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) x[i] = step_of(step.op, x[i], y[i], z[i]);
    }
    write_output(p, place, x);
  }
}

ROTA_KERNEL(rota_elementwise_f32, ElementwiseParams, 128, 8) { elementwise<float>(p); }
ROTA_KERNEL(rota_elementwise_i64, ElementwiseParams, 128, 4) { elementwise<int64_t>(p); }
