// The paged cache: writing keys and values to it, and attending to it.
//
// A page holds C tokens of each KV head in an order of its own, the one that dot products read:
// keys as [K][N / 2][C][2], values as [K][C / 2][N][2]. C and N are even.

#include <algorithm>
#include <cstring>

#include "functions.h"
#include "parallel.h"
#include "tile.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

using Heads = ffi::Buffer<ffi::BF16, 3>;  // [T, H, N]
using Pages = ffi::Buffer<ffi::U16, 5>;   // [L, P, K, C, N], bits of bfloat16

constexpr int kQueries = 4;          // that share each load of a key or value
constexpr int64_t kMostVectors = 8;  // of a head: N <= 128

// Where the keys or values of one KV head stand in one page of a layer.
struct Cache {
  bf16* data;
  int64_t pages, heads, block, size;  // P, K, C, N

  Cache(Pages buffer, int64_t layer)
      : pages(buffer.dimensions()[1]),
        heads(buffer.dimensions()[2]),
        block(buffer.dimensions()[3]),
        size(buffer.dimensions()[4]) {
    data = buffer.typed_data() + layer * pages * block * heads * size;
  }

  bf16* at(int64_t page, int64_t head) const { return data + (page * heads + head) * block * size; }
};

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
      const auto low = [&](int64_t i) { return x[i] * cosine[i] - x[i + half] * sine[i]; };
      const auto high = [&](int64_t i) { return x[i + half] * cosine[i] + x[i] * sine[i]; };
      bf16* query = reinterpret_cast<bf16*>(queries->typed_data()) + t * query_heads * size;
      for (int64_t h = 0; h < query_heads; ++h, x += size, query += size)
        for (int64_t i = 0; i < half; ++i) {
          query[i] = to_bf16(low(i));
          query[i + half] = to_bf16(high(i));
        }
      const int64_t to = page.typed_data()[t], row = offset.typed_data()[t];
      if (to == 0) continue;
      for (int64_t h = 0; h < keys.heads; ++h, x += size) {
        bf16* key = keys.at(to, h) + 2 * row;
        const auto place = [&](int64_t n) { return n / 2 * 2 * keys.block + n % 2; };
        for (int64_t i = 0; i < half; ++i) {
          key[place(i)] = to_bf16(low(i));
          key[place(i + half)] = to_bf16(high(i));
        }
      }
      for (int64_t h = 0; h < keys.heads; ++h, x += size) {
        bf16* value = values.at(to, h) + row / 2 * 2 * size + row % 2;
        for (int64_t n = 0; n < size; ++n) value[2 * n] = to_bf16(x[n]);
      }
    }
  });
  return ffi::Error::Success();
}

void fetch(const bf16* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(bf16);
  for (int64_t i = 0; i < count; i += kLine) _mm_prefetch(from + i, _MM_HINT_T0);
}

struct Scale {
  float multiplier, cap;
};

// exp(cap tanh(logit / cap)): the cap bounds it, so no running maximum is needed.
__m512 weigh(__m512 product, Scale scale) {
  const __m512 logit = _mm512_mul_ps(product, _mm512_set1_ps(scale.multiplier));
  const __m512 capped = tanh(_mm512_div_ps(logit, _mm512_set1_ps(scale.cap)));
  return exp(_mm512_mul_ps(capped, _mm512_set1_ps(scale.cap)));
}

// A few queries of one KV head attend to one sequence's pages in order.
//
// Each query's sums run over the cache in that order, whatever other queries stand beside it, and
// what it may not see adds exact zeros.
template <int Q>
void attend(const bf16* const* query, const int32_t* position, const Cache& keys,
            const Cache& values, const int32_t* pages, int64_t head, Scale scale,
            bf16* const* out) {
  const int64_t block = keys.block, size = keys.size;
  const int64_t vectors = (size + kLanes - 1) / kLanes;
  __m512 norm[Q], mixed[Q][kMostVectors];
  for (int q = 0; q < Q; ++q) {
    norm[q] = _mm512_setzero_ps();
    for (int64_t v = 0; v < vectors; ++v) mixed[q][v] = _mm512_setzero_ps();
  }
  alignas(64) bf16 together[Q][kMostVectors * kLanes];
  for (int q = 0; q < Q; ++q) std::memcpy(together[q], query[q], size * sizeof(bf16));
  Left<Q> left, shares;
  left.read(together[0], kMostVectors * kLanes, size);
  const int64_t last = *std::max_element(position, position + Q);
  for (int64_t first = 0, i = 0; first <= last; first += block, ++i) {
    const bf16* key_page = keys.at(pages[i], head);
    const bf16* value_page = values.at(pages[i], head);
    if (first + block <= last) {  // pages lie anywhere: only we know which is next
      fetch(keys.at(pages[i + 1], head), block * size);
      fetch(values.at(pages[i + 1], head), block * size);
    }
    for (int64_t c = 0; c < block; c += kLanes) {
      const __mmask16 lanes = first_lanes(block - c);
      __m512 even[Q], odd[Q];
      for (int q = 0; q < Q; ++q) even[q] = odd[q] = _mm512_setzero_ps();
      const auto add = [&](int64_t n, __m512* sum) {
        const bf16* at = key_page + 2 * (n / 2 * block + c);
        const Pairs key(lanes, at);
        for (int q = 0; q < Q; ++q) sum[q] = left.add(sum[q], q, n, key);
      };
      int64_t n = 0;
      for (; n + 4 <= size; n += 4) {  // two chains, since one would wait for itself
        add(n, even);
        add(n + 2, odd);
      }
      if (n < size) add(n, even);
      alignas(64) bf16 share[Q][kLanes];
      for (int q = 0; q < Q; ++q) {
        const __mmask16 seen = lanes & first_lanes(position[q] + 1 - first - c);
        const __m512 weight =
            _mm512_maskz_mov_ps(seen, weigh(_mm512_add_ps(even[q], odd[q]), scale));
        const __m256i rounded = to_bf16(weight);
        _mm256_store_si256(reinterpret_cast<__m256i*>(share[q]), rounded);
        norm[q] = _mm512_add_ps(norm[q], widen(rounded));
      }
      shares.read(share[0], kLanes, kLanes);
      for (int64_t v = 0; v < vectors; ++v) {
        const __mmask16 in_head = first_lanes(size - v * kLanes);
        __m512 sum[Q];
        for (int q = 0; q < Q; ++q) sum[q] = mixed[q][v];
        for (int64_t k = 0; k < std::min(kLanes, block - c); k += 2) {
          const bf16* at = value_page + (c + k) * size + 2 * v * kLanes;
          const Pairs value(in_head, at);
          for (int q = 0; q < Q; ++q) sum[q] = shares.add(sum[q], q, k, value);
        }
        for (int q = 0; q < Q; ++q) mixed[q][v] = sum[q];
      }
    }
  }
  for (int q = 0; q < Q; ++q) {
    const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(norm[q]));
    for (int64_t v = 0; v < vectors; ++v) {
      const __m256i rounded = to_bf16(_mm512_div_ps(mixed[q][v], total));
      _mm256_mask_storeu_epi16(out[q] + v * kLanes, first_lanes(size - v * kLanes), rounded);
    }
  }
}

// Attends queries [T, H, N] to their sequences' pages; rows that `rows` leaves out give zeros.
ffi::Error attention(ffi::ThreadPool pool, float multiplier, float cap, Heads queries,
                     Pages key_cache, Pages value_cache, ffi::BufferR0<ffi::S32> layer,
                     ffi::BufferR2<ffi::S32> rows, ffi::BufferR2<ffi::S32> positions,
                     ffi::BufferR2<ffi::S32> pages, ffi::Result<ffi::BufferR2<ffi::BF16>> out) {
  const Cache keys(key_cache, layer.typed_data()[0]), values(value_cache, layer.typed_data()[0]);
  const int64_t tokens = queries.dimensions()[0], heads = queries.dimensions()[1];
  const int64_t blocks = rows.dimensions()[0], lanes = rows.dimensions()[1];
  const int64_t size = keys.size, group = heads / keys.heads, most = pages.dimensions()[1];
  const bf16* query = reinterpret_cast<const bf16*>(queries.typed_data());
  bf16* result = reinterpret_cast<bf16*>(out->typed_data());
  std::memset(result, 0, tokens * heads * size * sizeof(bf16));
  for_each(pool, blocks * keys.heads, [&](int64_t item) {
    const int64_t b = item / keys.heads, kv_head = item % keys.heads;
    const int32_t* row = rows.typed_data() + b * lanes;
    const int32_t* position = positions.typed_data() + b * lanes;
    const bf16* from[kQueries];
    bf16* to[kQueries];
    int32_t at[kQueries];
    int count = 0;
    const auto run = [&](auto attend_some) {
      attend_some(from, at, keys, values, pages.typed_data() + b * most, kv_head,
                  Scale{multiplier, cap}, to);
      count = 0;
    };
    for (int64_t i = 0; i < lanes; ++i) {
      if (position[i] < 0) continue;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t place = (row[i] * heads + kv_head * group + g) * size;
        from[count] = query + place;
        to[count] = result + place;
        at[count++] = position[i];
        if (count == kQueries) run(attend<kQueries>);
      }
    }
    if (count == 1) run(attend<1>);
    if (count == 2) run(attend<2>);
    if (count == 3) run(attend<3>);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("multiplier")
                                  .Attr<float>("cap")
                                  .Arg<Heads>()
                                  .Arg<Pages>()
                                  .Arg<Pages>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::BF16>>());

}  // namespace grok1
