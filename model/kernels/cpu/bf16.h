// Products of bfloat16 with float32 sums: by the CPU's own instruction where it has one. Elsewhere
// both sides are widened first, which is exact, and so are the products then.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace grok1 {

using bf16 = uint16_t;

constexpr int64_t kLanes = 16;  // float32 values of a vector

// A mask of the first `count` of 16 lanes.
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, 16)) - 1);
}

inline __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

#ifdef __AVX512BF16__

constexpr int64_t kChunk = INT64_MAX / 2;  // of the contracted axis, as many as are read at once

// Rounded to the nearest, ties to even.
inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Two values of each of 16 columns, [16][2].
struct Pairs {
  __m512bh values;

  explicit Pairs(const bf16* p) : values((__m512bh)_mm512_loadu_si512(p)) {}
  Pairs(__mmask16 columns, const bf16* p)
      : values((__m512bh)_mm512_maskz_loadu_epi32(columns, p)) {}
};

// R rows, as what stands left in a product reads them.
template <int R>
class Left {
 public:
  void read(const bf16* x, int64_t stride, int64_t) { x_ = x, stride_ = stride; }

  // Adds row `r`'s values k and k + 1, each times its own of the pairs.
  __m512 add(__m512 sum, int r, int64_t k, const Pairs& right) const {
    const auto pair = *reinterpret_cast<const int32_t*>(x_ + r * stride_ + k);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), right.values);
  }

 private:
  const bf16* x_;
  int64_t stride_;
};

#else

constexpr int64_t kChunk = 256;  // what rows widened take of the nearest cache: 1 KiB each

inline __m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  // A NaN stays one, whatever its bits.
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

struct Pairs {
  __m512 even, odd;

  explicit Pairs(const bf16* p) : Pairs(_mm512_loadu_si512(p)) {}
  Pairs(__mmask16 columns, const bf16* p) : Pairs(_mm512_maskz_loadu_epi32(columns, p)) {}
  explicit Pairs(__m512i both)
      : even(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))),
        odd(_mm512_castsi512_ps(_mm512_maskz_mov_epi16(0xaaaaaaaa, both))) {}
};

template <int R>
class Left {
 public:
  void read(const bf16* x, int64_t stride, int64_t count) {
    const int64_t whole = count / kLanes * kLanes;
    const __mmask16 rest = first_lanes(count - whole);
    for (int r = 0; r < R; ++r, x += stride) {
      for (int64_t k = 0; k < whole; k += kLanes)
        _mm512_store_ps(values_[r] + k,
                        widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k))));
      if (rest)
        _mm512_store_ps(values_[r] + whole, widen(_mm256_maskz_loadu_epi16(rest, x + whole)));
    }
  }

  __m512 add(__m512 sum, int r, int64_t k, const Pairs& right) const {
    sum = _mm512_fmadd_ps(_mm512_set1_ps(values_[r][k]), right.even, sum);
    return _mm512_fmadd_ps(_mm512_set1_ps(values_[r][k + 1]), right.odd, sum);
  }

 private:
  alignas(64) float values_[R][kChunk];
};

#endif

inline bf16 to_bf16(float x) {
  return static_cast<bf16>(_mm256_extract_epi16(to_bf16(_mm512_set1_ps(x)), 0));
}

}  // namespace grok1
