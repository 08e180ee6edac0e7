// Attending to the paged cache.

#include <algorithm>
#include <cstring>

#include "cache.h"
#include "functions.h"
#include "parallel.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

constexpr int kQueries = 4;  // that share each load of a key or value

// What the logits are made of.
struct Scale {
  float multiplier, cap;
};

// exp(cap tanh(x multiplier / cap)): the cap bounds it, so no running maximum is needed.
[[gnu::always_inline]] inline __m512 weigh(__m512 x, Scale scale) {
  const __m512 e =
      exp2(_mm512_mul_ps(x, _mm512_set1_ps(2 * scale.multiplier / scale.cap * kLog2e)));
  const __m512 over = inverse(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));  // tanh = 1 - 2 over
  const float cap = scale.cap * kLog2e;
  return exp2(_mm512_fnmadd_ps(over, _mm512_set1_ps(2 * cap), _mm512_set1_ps(cap)));
}

// Up to 16 tokens of a page.
struct Tokens {
  const bf16 *keys, *values;
  int64_t first;  // position in the sequence
  int64_t count;
};

// A few queries of one KV head on their way through one sequence's pages, in order.
//
// Each query's sums run over the cache in that order, whatever other queries stand beside it, and
// what it may not see adds exact zeros.
template <int Q>
struct Attending {
  int64_t block, size;  // C, N
  Scale scale;
  const int32_t* position;
  Left<Q> queries;
  alignas(64) bf16 together[Q][kMostVectors * kLanes];
  __m512 norm[Q], mixed[Q][kMostVectors];

  Attending(const Cache& keys, Scale scale, const bf16* const* query, const int32_t* position)
      : block(keys.block), size(keys.size), scale(scale), position(position) {
    for (int q = 0; q < Q; ++q) {
      std::memcpy(together[q], query[q], size * sizeof(bf16));
      norm[q] = _mm512_setzero_ps();
      for (__m512& sum : mixed[q]) sum = _mm512_setzero_ps();
    }
    queries.read(together[0], kMostVectors * kLanes, size);
  }

  // Adds U times 16 tokens, all at once so that no sum waits for itself.
  template <int U>
  void add(const Tokens* tokens) {
    alignas(64) bf16 share[Q][U * kLanes];
    weigh_tokens<U>(tokens, share);
    Left<Q> shares;
    shares.read(share[0], U * kLanes, U * kLanes);
    int64_t v = 0;
    for (; (v + kMixed) * kLanes <= size; v += kMixed) mix<U, kMixed>(tokens, shares, v);
    for (; v * kLanes < size; ++v) mix<U, 1>(tokens, shares, v);
  }

  void finish(bf16* const* out) const {
    for (int q = 0; q < Q; ++q) {
      const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(norm[q]));
      for (int64_t v = 0; v * kLanes < size; ++v) {
        const __m256i rounded = to_bf16(_mm512_div_ps(mixed[q][v], total));
        _mm256_mask_storeu_epi16(out[q] + v * kLanes, first_lanes(size - v * kLanes), rounded);
      }
    }
  }

 private:
  static constexpr int64_t kMixed = 4;  // vectors of values at once

  template <int U>
  void weigh_tokens(const Tokens* tokens, bf16 (*share)[U * kLanes]) {
    __m512 even[U][Q], odd[U][Q];
    const bf16* keys[U];
    __mmask16 lanes[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      keys[u] = tokens[u].keys;
      lanes[u] = first_lanes(tokens[u].count);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) even[u][q] = odd[u][q] = _mm512_setzero_ps();
    }
    const int64_t pair = 2 * block;
    int64_t n = 0;
    for (; n + 4 <= size; n += 4)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u, keys[u - 1] += 2 * pair) {
        const Pairs key(lanes[u], keys[u]), next(lanes[u], keys[u] + pair);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          even[u][q] = queries.add(even[u][q], q, n, key);
          odd[u][q] = queries.add(odd[u][q], q, n + 2, next);
        }
      }
    if (n < size)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Pairs key(lanes[u], keys[u]);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) even[u][q] = queries.add(even[u][q], q, n, key);
      }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const __mmask16 seen = lanes[u] & first_lanes(position[q] + 1 - tokens[u].first);
        const __m512 weight =
            _mm512_maskz_mov_ps(seen, weigh(_mm512_add_ps(even[u][q], odd[u][q]), scale));
        const __m256i rounded = to_bf16(weight);
        _mm256_store_si256(reinterpret_cast<__m256i*>(share[q] + u * kLanes), rounded);
        norm[q] = _mm512_add_ps(norm[q], widen(rounded));
      }
  }

  // Adds the tokens' values from vector v on, V of them.
  template <int U, int V>
  void mix(const Tokens* tokens, const Left<Q>& shares, int64_t v) {
    __m512 sum[Q][V];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) sum[q][i] = mixed[q][v + i];
    const __mmask16 in_head = V == 1 ? first_lanes(size - v * kLanes) : first_lanes(kLanes);
    for (int u = 0; u < U; ++u) {
      const bf16* at = tokens[u].values + 2 * v * kLanes;
      for (int64_t k = 0; k < tokens[u].count; k += 2, at += 2 * size)
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) {
          const Pairs value(in_head, at + 2 * i * kLanes);
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) sum[q][i] = shares.add(sum[q][i], q, u * kLanes + k, value);
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) mixed[q][v + i] = sum[q][i];
  }
};

// Asks for pages before they are read: they lie anywhere, so only we know which is next. To the
// second cache, since loads wait behind what the first one asks for.
class Ahead {
 public:
  // For heads from `head` on, each of which reads `count` pages.
  Ahead(const Cache& keys, const Cache& values, const int32_t* pages, int64_t count, int64_t head,
        int64_t heads)
      : keys_(keys), values_(values), pages_(pages), count_(count), head_(head),
        end_(heads * count) {}

  // Page i of `head` is about to be read.
  void reading(int64_t head, int64_t i) {
    const int64_t at = (head - head_) * count_ + i;
    for (const int64_t stop = std::min(at + kPages + 1, end_); next_ < stop; ++next_) {
      const int64_t page = pages_[next_ % count_], of = head_ + next_ / count_;
      fetch(keys_.at(page, of));
      fetch(values_.at(page, of));
    }
  }

 private:
  static constexpr int64_t kPages = 3;

  void fetch(const bf16* from) const {
    constexpr int64_t kLine = 64 / sizeof(bf16);
    for (int64_t i = 0; i < keys_.block * keys_.size; i += kLine)
      _mm_prefetch(from + i, _MM_HINT_T1);
  }

  const Cache &keys_, &values_;
  const int32_t* pages_;
  int64_t count_, head_, end_, next_ = 0;
};

// A few queries of one KV head attend to one sequence's pages in order.
template <int Q>
void attend(const bf16* const* query, const int32_t* position, const Cache& keys,
            const Cache& values, const int32_t* pages, int64_t head, Scale scale, Ahead& ahead,
            bf16* const* out) {
  constexpr int kTogether = 2;  // times 16 tokens
  Attending<Q> state(keys, scale, query, position);
  const int64_t block = keys.block, last = *std::max_element(position, position + Q);
  Tokens tokens[kTogether];
  int waiting = 0;
  for (int64_t i = 0; i <= last / block; ++i) {
    ahead.reading(head, i);
    const bf16 *key_page = keys.at(pages[i], head), *value_page = values.at(pages[i], head);
    for (int64_t c = 0; c < block && i * block + c <= last; c += kLanes) {
      tokens[waiting++] = {key_page + 2 * c, value_page + c * keys.size, i * block + c,
                           std::min(kLanes, block - c)};
      if (waiting == kTogether) {
        state.template add<kTogether>(tokens);
        waiting = 0;
      }
    }
  }
  if (waiting) state.template add<1>(tokens);
  state.finish(out);
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
  int64_t seen = 0;
  for (int64_t i = 0; i < blocks * lanes; ++i) seen += positions.typed_data()[i] + 1;
  Team team(pool, seen * 2 * heads * size);
  // A thread takes all heads of a block, which lie side by side, unless threads would be idle.
  const int64_t at_once = blocks >= 4 * team.threads() ? keys.heads : 1;
  const int64_t parts = keys.heads / at_once;
  team.for_each(blocks * parts, [&](int64_t item) {
    const int64_t b = item / parts, first_head = item % parts * at_once;
    const int32_t* row = rows.typed_data() + b * lanes;
    const int32_t* position = positions.typed_data() + b * lanes;
    const int32_t* own_pages = pages.typed_data() + b * most;
    const int64_t last = *std::max_element(position, position + lanes);
    Ahead ahead(keys, values, own_pages, last / keys.block + 1, first_head, at_once);
    for (int64_t kv_head = first_head; kv_head < first_head + at_once; ++kv_head) {
      const bf16* from[kQueries];
      bf16* to[kQueries];
      int32_t at[kQueries];
      int count = 0;
      const auto run = [&](auto attend_some) {
        attend_some(from, at, keys, values, own_pages, kv_head, Scale{multiplier, cap}, ahead, to);
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
    }
  });
  return ffi::Error::Success();
}

}  // namespace

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
