// Norms of rows of float32, whose length is a multiple of 32.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "bf16.h"

namespace grok1 {

// 1 / sqrt(mean(x^2) + epsilon).
inline float inverse_rms(const float* x, int64_t count, float epsilon) {
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    const __m512 left = _mm512_loadu_ps(x + i), right = _mm512_loadu_ps(x + i + kLanes);
    even = _mm512_fmadd_ps(left, left, even);
    odd = _mm512_fmadd_ps(right, right, odd);
  }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  return 1.0f / std::sqrt(sum / static_cast<float>(count) + epsilon);
}

// Calls take(i, vector) with each 16 values of x / rms(x) * scale.
template <typename Take>
void norm(const float* x, const float* scale, int64_t count, float epsilon, const Take& take) {
  const __m512 factor = _mm512_set1_ps(inverse_rms(x, count, epsilon));
  for (int64_t i = 0; i < count; i += kLanes)
    take(i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor),
                          _mm512_loadu_ps(scale + i)));
}

// stream += x / rms(x) * scale.
inline void add_normed(const float* x, const float* scale, int64_t count, float epsilon,
                       float* stream) {
  norm(x, scale, count, epsilon, [&](int64_t i, __m512 value) {
    _mm512_storeu_ps(stream + i, _mm512_add_ps(_mm512_loadu_ps(stream + i), value));
  });
}

inline void store_bf16(bf16* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(x));
}

}  // namespace grok1
