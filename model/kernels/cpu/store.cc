// Writing keys and values to the paged cache.

#include <algorithm>
#include <cstring>

#include "cache.h"
#include "parallel.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

// Calls body(i, lanes) for vectors of `count` values.
template <typename Body>
void for_vectors(int64_t count, const Body& body) {
  for (int64_t i = 0; i < count; i += kLanes) body(i, first_lanes(count - i));
}

// Writes a head of float32, rotated by its position's phases, as bfloat16.
void rotate(const float* x, int64_t half, const float* cosines, const float* sines, bf16* to) {
  for_vectors(half, [&](int64_t i, __mmask16 lanes) {
    const __m512 left = _mm512_maskz_loadu_ps(lanes, x + i);
    const __m512 right = _mm512_maskz_loadu_ps(lanes, x + half + i);
    const __m512 cosine = _mm512_maskz_loadu_ps(lanes, cosines + i);
    const __m512 sine = _mm512_maskz_loadu_ps(lanes, sines + i);
    const __m512 low = _mm512_fmsub_ps(left, cosine, _mm512_mul_ps(right, sine));
    const __m512 high = _mm512_fmadd_ps(right, cosine, _mm512_mul_ps(left, sine));
    _mm256_mask_storeu_epi16(to + i, lanes, to_bf16(low));
    _mm256_mask_storeu_epi16(to + half + i, lanes, to_bf16(high));
  });
}

// Rotates queries and keys, which are in float32 beside values: [T, (H + K + K) N]. Stores keys and
// values at their places (rows of page 0 are in nobody's) and gives the queries.
ffi::Error store(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> heads,
                 ffi::BufferR2<ffi::F32> cosines, ffi::BufferR2<ffi::F32> sines,
                 ffi::BufferR1<ffi::S32> page, ffi::BufferR1<ffi::S32> offset,
                 ffi::BufferR0<ffi::S32> layer, Pages, Pages, ffi::Result<Heads> queries,
                 ffi::Result<Pages> key_cache, ffi::Result<Pages> value_cache) {
  const Cache keys(*key_cache, layer.typed_data()[0]), values(*value_cache, layer.typed_data()[0]);
  const int64_t tokens = queries->dimensions()[0], query_heads = queries->dimensions()[1];
  const int64_t size = keys.size, half = size / 2, width = heads.dimensions()[1];
  constexpr int64_t kTokens = 8;
  for_each(pool, (tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t) {
      const float* x = heads.typed_data() + t * width;
      const float* cosine = cosines.typed_data() + t * half;
      const float* sine = sines.typed_data() + t * half;
      bf16* query = reinterpret_cast<bf16*>(queries->typed_data()) + t * query_heads * size;
      for (int64_t h = 0; h < query_heads; ++h, x += size, query += size)
        rotate(x, half, cosine, sine, query);
      const int64_t to = page.typed_data()[t], row = offset.typed_data()[t];
      if (to == 0) continue;
      alignas(64) bf16 rotated[kMostVectors * kLanes];
      for (int64_t h = 0; h < keys.heads; ++h, x += size) {
        rotate(x, half, cosine, sine, rotated);
        bf16* key = keys.at(to, h) + 2 * row;
        for (int64_t n = 0; n < size; n += 2)
          std::memcpy(key + n * keys.block, rotated + n, 2 * sizeof(bf16));
      }
      // Of each pair of tokens one is here, perhaps the other in another thread.
      const __mmask32 own = row % 2 ? 0xaaaaaaaa : 0x55555555;
      for (int64_t h = 0; h < keys.heads; ++h, x += size) {
        bf16* value = values.at(to, h) + row / 2 * 2 * size;
        for_vectors(size, [&](int64_t i, __mmask16 lanes) {
          const __m512i wide = _mm512_cvtepu16_epi32(to_bf16(_mm512_maskz_loadu_ps(lanes, x + i)));
          const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
          const int64_t count = 2 * std::min(size - i, kLanes);
          const auto in_head = static_cast<__mmask32>((int64_t{1} << count) - 1);
          _mm512_mask_storeu_epi16(value + 2 * i, own & in_head, both);
        });
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_store, store,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<Pages>()
                                  .Arg<Pages>()
                                  .Ret<Heads>()
                                  .Ret<Pages>()
                                  .Ret<Pages>());

}  // namespace grok1
