// params.h: what each kernel is told, one struct by value per kernel family.
//
// Plain C, so that the host can read it too; src/params.rs mirrors it field by field and a test holds the two together.
// Rules: fixed-width fields without holes; device addresses come first, so that a struct is relocated by
// rewriting its leading 8-byte words (their number is in the catalogue); an address of 0 means "there is none".
// Strides and counts are in elements unless their name ends in _bytes.
#ifndef ROTA_PARAMS_H
#define ROTA_PARAMS_H

#include <stdint.h>

// What happens to y = f(x) last. Parameters a and b belong to some of them.
enum RotaActivation {
  ROTA_IDENTITY = 0,
  ROTA_RELU = 1,
  ROTA_CLIP = 2,          // min(max(x, a), b)
  ROTA_SIGMOID = 3,
  ROTA_TANH = 4,
  ROTA_HARD_SIGMOID = 5,  // clip(a * x + b, 0, 1)
  ROTA_HARD_SWISH = 6,    // x * clip(a * x + b, 0, 1)
  ROTA_SWISH = 7,         // x * sigmoid(x)
  ROTA_GELU = 8,          // x * (1 + erf(x / sqrt 2)) / 2
  ROTA_LEAKY_RELU = 9,    // x < 0 ? a * x : x
  ROTA_ELU = 10,          // x < 0 ? a * (exp(x) - 1) : x
};

// y = activation(scale * sum + bias_scale * bias + residual), or, with `residual_last`, the residual added after the activation.
typedef struct Epilogue {
  float scale;
  float bias_scale;
  uint32_t activation;  // RotaActivation
  float a;
  float b;
  uint32_t residual_last;
  uint32_t bias_row;     // strides of the bias: 0 where it is broadcast
  uint32_t bias_column;
} Epilogue;

// c[o,i] = epilogue(a[o,i] b[o,i]) for o < batch_outer, i < batch_inner.
// a is rows x depth, b depth x columns; of each one's two strides at least one should be 1 for speed, none has to be.
typedef struct GemmParams {
  uint64_t a;
  uint64_t b;
  uint64_t c;
  uint64_t bias;
  uint64_t residual;  // laid out like c
  uint64_t a_outer;   // strides between batches
  uint64_t a_inner;
  uint64_t b_outer;
  uint64_t b_inner;
  uint64_t c_outer;
  uint64_t c_inner;
  uint32_t rows;
  uint32_t columns;
  uint32_t depth;
  uint32_t batch_outer;
  uint32_t batch_inner;
  uint32_t a_row;
  uint32_t a_depth;
  uint32_t b_depth;
  uint32_t b_column;
  uint32_t c_row;  // c's columns lie side by side
  uint32_t a_vector;  // 1: four neighbours along the stride of 1 may be loaded at once
  uint32_t b_vector;
  Epilogue epilogue;
} GemmParams;

// y[o, c, i] = exp(x[o, c, i] - max) / sum over c; log of it when `log` is 1.
typedef struct SoftmaxParams {
  uint64_t x;
  uint64_t y;
  uint32_t outer;
  uint32_t columns;
  uint32_t inner;
  uint32_t log;
} SoftmaxParams;

#endif
