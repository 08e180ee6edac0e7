// Functions of float32 vectors, accurate to a few units of the last place.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace grok1 {

// exp(x) for x <= 88; 0 below -104.
inline __m512 exp(__m512 x) {
  const __m512 log2e = _mm512_set1_ps(1.44269504f);
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 0);
  // ln 2 in two parts, so that the remainder is exact.
  __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
  // Taylor's series to the sixth power: |rest| <= ln 2 / 2, so the error is under 1e-7.
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(sum, _mm512_max_ps(whole, _mm512_set1_ps(-150.0f)));
}

// 1 / x, for positive x; 0 where that is no normal number.
inline __m512 inverse(__m512 x) {
  const __m512 guess = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0f)));
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), as a logistic function.
inline __m512 gelu(__m512 x) {
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 inner =
      _mm512_fmadd_ps(square, _mm512_set1_ps(0.0713548163f), _mm512_set1_ps(1.59576912f));
  const __m512 e = exp(_mm512_min_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), inner),
                                     _mm512_set1_ps(88.0f)));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

}  // namespace grok1
