// From the residual stream to queries, keys and values, and those of the latter to the cache.

#include <algorithm>
#include <cstring>

#include "cache.h"
#include "norm.h"
#include "weights.h"

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

// Stores a token's keys, rotated, and its values, which follow them, at a row of a page.
void store(const float* x, const float* cosine, const float* sine, const Cache& keys,
           const Cache& values, int64_t page, int64_t row) {
  const int64_t size = keys.size;
  alignas(64) bf16 rotated[kMostVectors * kLanes];
  for (int64_t h = 0; h < keys.heads; ++h, x += size) {
    rotate(x, size / 2, cosine, sine, rotated);
    bf16* key = keys.at(page, h) + 2 * row;
    for (int64_t n = 0; n < size; n += 2)
      std::memcpy(key + n * keys.block, rotated + n, 2 * sizeof(bf16));
  }
  // Of each pair of tokens one is here, perhaps the other in another thread.
  const __mmask32 own = row % 2 ? 0xaaaaaaaa : 0x55555555;
  for (int64_t h = 0; h < keys.heads; ++h, x += size) {
    bf16* value = values.at(page, h) + row / 2 * 2 * size;
    for_vectors(size, [&](int64_t i, __mmask16 lanes) {
      const __m512i wide = _mm512_cvtepu16_epi32(to_bf16(_mm512_maskz_loadu_ps(lanes, x + i)));
      const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
      const int64_t count = 2 * std::min(size - i, kLanes);
      const auto in_head = static_cast<__mmask32>((int64_t{1} << count) - 1);
      _mm512_mask_storeu_epi16(value + 2 * i, own & in_head, both);
    });
  }
}

// Norms the first `used` rows of `hidden` [T, D] and multiplies them with the weights of queries,
// keys and values; rotates, stores keys and values at their places (rows of page 0 are in
// nobody's), and gives the queries. `inputs` and `heads` are workspace.
ffi::Error project(ffi::ThreadPool pool, float epsilon, Matrix hidden, Scalar used, Vector scale,
                   Matrix cosines, Matrix sines, ffi::BufferR1<ffi::S32> page,
                   ffi::BufferR1<ffi::S32> offset, Scalar layer, Pages, Pages,
                   ffi::RemainingArgs arguments, ffi::Result<Heads> queries,
                   ffi::Result<Pages> key_cache, ffi::Result<Pages> value_cache,
                   ffi::Result<Halves> inputs, ffi::Result<Matrix> heads) {
  constexpr int64_t kTokens = 4;
  const Cache keys(*key_cache, layer.typed_data()[0]), values(*value_cache, layer.typed_data()[0]);
  const int64_t tokens = used.typed_data()[0], query_heads = queries->dimensions()[1];
  const int64_t width = hidden.dimensions()[1], stride = inputs->dimensions()[1];
  const int64_t size = keys.size, half = size / 2, across = heads->dimensions()[1];
  const auto weights = weights_of(arguments);
  Team team(pool, tokens * multiplications(weights));

  team.for_each((tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t)
      norm(hidden.typed_data() + t * width, scale.typed_data(), width, epsilon,
           [to = data_of(inputs) + t * stride](int64_t i, __m512 x) { store_bf16(to + i, x); });
  });

  const Rows rows{data_of(inputs), stride, tokens};
  multiply_all(team, rows, weights, heads->typed_data(), across);

  team.for_each((tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t) {
      const float* x = heads->typed_data() + t * across;
      const float* cosine = cosines.typed_data() + t * half;
      const float* sine = sines.typed_data() + t * half;
      bf16* query = reinterpret_cast<bf16*>(queries->typed_data()) + t * query_heads * size;
      for (int64_t h = 0; h < query_heads; ++h, x += size, query += size)
        rotate(x, half, cosine, sine, query);
      const int64_t to = page.typed_data()[t];
      if (to) store(x, cosine, sine, keys, values, to, offset.typed_data()[t]);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_project, project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("epsilon")
                                  .Arg<Matrix>()
                                  .Arg<Scalar>()
                                  .Arg<Vector>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<Scalar>()
                                  .Arg<Pages>()
                                  .Arg<Pages>()
                                  .RemainingArgs()
                                  .Ret<Heads>()
                                  .Ret<Pages>()
                                  .Ret<Pages>()
                                  .Ret<Halves>()
                                  .Ret<Matrix>());

}  // namespace grok1
