// Functions of float32 vectors, accurate to a few units of the last place.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace grok1 {

constexpr float kLog2e = 1.44269504f;

// 2^x, for |x| <= 126; of others that of the nearest such.
inline __m512 exp2(__m512 x) {
  // In this order of operands no number stays none.
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), _mm512_min_ps(_mm512_set1_ps(126.0f), x));
  const __m512 whole = _mm512_roundscale_ps(x, 0);
  const __m512 rest = _mm512_sub_ps(x, whole);
  // Taylor's series to the sixth power: |rest ln 2| <= ln 2 / 2, so the error is under 1e-7.
  __m512 sum = _mm512_set1_ps(1.54035304e-4f);
  for (float coefficient :
       {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(sum, whole);
}

// 1 / x, for positive x up to 2^126.
inline __m512 inverse(__m512 x) {
  const __m512 guess = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0f)));
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), as a logistic function.
inline __m512 gelu(__m512 x) {
  const __m512 square = _mm512_mul_ps(x, x);
  // -2 sqrt(2 / pi) / ln 2, and 0.044715 times that.
  const __m512 inner =
      _mm512_fmadd_ps(square, _mm512_set1_ps(-0.102943240f), _mm512_set1_ps(-2.30220820f));
  const __m512 e = exp2(_mm512_mul_ps(x, inner));
  return _mm512_mul_ps(x, inverse(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

}  // namespace grok1
