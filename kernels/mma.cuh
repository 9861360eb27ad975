// mma.cuh: the tensor-core instruction for each kind of operand, and how its operands are packed into words.
#pragma once

#include "types.cuh"

#ifdef ROTA_HOST

// sums[i] += a row times a column, as the instruction spreads them over a warp: lane l has rows l/4 and l/4 + 8, columns 2 (l % 4) and
// that + 1; a[i] has words (l % 4) + 4 (i / 2) of row l/4 + 8 (i % 2), b[i] words (l % 4) + 4 i of column l/4.
// Each lane shows its words as the PER_WORD floats that `number(word, part)` says they are.
template <unsigned PER_WORD, class Number>
inline void mma_on_host(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], unsigned line, const Number& number) {
  struct Fragments { float a[4][PER_WORD], b[2][PER_WORD]; } mine;
  for (unsigned part = 0; part < PER_WORD; part++) {
    for (unsigned i = 0; i < 4; i++) mine.a[i][part] = number(a[i], part);
    for (unsigned i = 0; i < 2; i++) mine.b[i][part] = number(b[i], part);
  }
  const auto shown = rota_host::show(mine, line);
  const unsigned lane = rota_host::lane();
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0.0f;
    for (unsigned word = 0; word < 8; word++) {
      const auto& left = shown.peek(row % 8 * 4 + word % 4).a[row / 8 + word / 4 * 2];
      const auto& right = shown.peek(column * 4 + word % 4).b[word / 4];
      for (unsigned part = 0; part < PER_WORD; part++) sum += left[part] * right[part];
    }
    sums[i] += sum;
  }
}
#define ROTA_MMA(instruction, per_word, number, sums, a, b) mma_on_host<per_word>(sums, a, b, __LINE__, number)
#else
#define ROTA_MMA(instruction, per_word, number, sums, a, b)                                                    \
  asm volatile(instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                             \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

// Four matrices of 8 rows of 16 bytes out of shared memory. Lane l gives where row l % 8 of matrix l / 8 lies, and gets of each matrix
// word l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
#ifdef ROTA_HOST
  const auto rows = rota_host::show(row, __LINE__);
  const unsigned lane = rota_host::lane();
  for (unsigned m = 0; m < 4; m++) words[m] = static_cast<const uint32_t*>(rows.lane(m * 8 + lane / 4))[lane % 4];
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// The same of their transposes, whose elements are of 16 bits: of each matrix, column l / 4 of rows 2 (l % 4) and that + 1.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
#ifdef ROTA_HOST
  const auto rows = rota_host::show(row, __LINE__);
  const unsigned lane = rota_host::lane();
  for (unsigned m = 0; m < 4; m++) {
    const auto half = [&](unsigned r) { return static_cast<const uint16_t*>(rows.lane(m * 8 + r))[lane / 4]; };
    words[m] = half(lane % 4 * 2) | static_cast<uint32_t>(half(lane % 4 * 2 + 1)) << 16;
  }
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// Architectures before 8.0 have no such instruction. The driver takes code for those only where there is nothing newer, and the
// device refuses these kernels there; the trap is for whoever launches one all the same.
#if !defined(ROTA_HOST) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define ROTA_BEFORE_AMPERE 1
#endif

// f32 operands, rounded to 10 bits of fraction.
struct Tf32 {
  using Element = float;
  static constexpr unsigned PER_WORD = 1;

  static __device__ __forceinline__ uint32_t word(float x) {
#if defined(ROTA_BEFORE_AMPERE)
    return __float_as_uint(x);
#elif defined(ROTA_HOST)
    const uint32_t bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;  // halves away from zero
#else
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#endif
  }
  static __device__ __forceinline__ float number(uint32_t word, unsigned) { return __uint_as_float(word); }
  // Of what lies in shared memory as it was stored.
  static __device__ __forceinline__ uint32_t operand(uint32_t stored) { return word(__uint_as_float(stored)); }
  static __device__ __forceinline__ Four<uint32_t> pack_along(const Four<float> (&four)[1]) {
    return {{word(four[0].v[0]), word(four[0].v[1]), word(four[0].v[2]), word(four[0].v[3])}};
  }
  static __device__ __forceinline__ Four<uint32_t> pack_across(const Four<float> (&four)[1]) { return pack_along(four); }

  static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef ROTA_BEFORE_AMPERE
    __trap();
#else
    ROTA_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 1, number, sums, a, b);
#endif
  }
};

// Two 16-bit numbers to a word; the one at the lesser depth in the lower half.
template <class T>
struct Pairs {
  using Element = T;
  static constexpr unsigned PER_WORD = 2;

  static __device__ __forceinline__ uint32_t word(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
  }
  // Eight along the depth.
  static __device__ __forceinline__ Four<uint32_t> pack_along(const Four<float> (&four)[2]) {
    return {{word(four[0].v[0], four[0].v[1]), word(four[0].v[2], four[0].v[3]), word(four[1].v[0], four[1].v[1]),
             word(four[1].v[2], four[1].v[3])}};
  }
  // Two depths of four rows or columns.
  static __device__ __forceinline__ Four<uint32_t> pack_across(const Four<float> (&four)[2]) {
    return {{word(four[0].v[0], four[1].v[0]), word(four[0].v[1], four[1].v[1]), word(four[0].v[2], four[1].v[2]),
             word(four[0].v[3], four[1].v[3])}};
  }
  static __device__ __forceinline__ uint32_t operand(uint32_t stored) { return stored; }
  static __device__ __forceinline__ float number(uint32_t word, unsigned part) {
    return to_float(T{static_cast<uint16_t>(word >> (16 * part))});
  }
};

struct HalfPairs : Pairs<f16> {
  static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef ROTA_BEFORE_AMPERE
    // Half as deep an instruction, twice.
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                   : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
    }
#else
    ROTA_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 2, number, sums, a, b);
#endif
  }
};

struct BfloatPairs : Pairs<bf16> {
  static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef ROTA_BEFORE_AMPERE
    __trap();
#else
    ROTA_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 2, number, sums, a, b);
#endif
  }
};
