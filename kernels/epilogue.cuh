// epilogue.cuh: what a GEMM or convolution does with each sum before it is stored.
#pragma once

#include "types.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The branch is the same for a whole launch, so it costs an instruction or two per element.
__device__ __forceinline__ float activate(uint32_t activation, float a, float b, float x) {
  switch (activation) {
    case ROTA_RELU: return x < 0.0f ? 0.0f : x;
    case ROTA_CLIP: return x < a ? a : (x > b ? b : x);
    case ROTA_SIGMOID: return sigmoid(x);
    case ROTA_TANH: return tanhf(x);
    case ROTA_HARD_SIGMOID: return fminf(fmaxf(a * x + b, 0.0f), 1.0f);
    case ROTA_HARD_SWISH: return x * fminf(fmaxf(a * x + b, 0.0f), 1.0f);
    case ROTA_SWISH: return x * sigmoid(x);
    case ROTA_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ROTA_LEAKY_RELU: return x < 0.0f ? a * x : x;
    case ROTA_ELU: return x < 0.0f ? a * expm1f(x) : x;
    default: return x;
  }
}

// `bias` and `residual` point at this element's, or are null. The bias is f32 whatever the elements are: it is as large as what a whole sum can
// be off by, and costs next to nothing to read.
template <class T>
__device__ __forceinline__ float finish(const Epilogue& e, float sum, const float* bias, const T* residual) {
  float y = e.scale * sum;
  if (bias) y += e.bias_scale * *bias;
  float rest = residual ? to_float(*residual) : 0.0f;
  if (e.residual_last) return activate(e.activation, e.a, e.b, y) + rest;
  return activate(e.activation, e.a, e.b, y + rest);
}
