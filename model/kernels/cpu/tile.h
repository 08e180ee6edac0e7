// The one inner loop of all products: a few rows times 32 columns, bfloat16 with float32 sums.
//
// A row's sums run over the contracted axis in one fixed order, whatever rows stand beside it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "bf16.h"

namespace grok1 {

constexpr int kTileRows = 11;  // with two sums a row, what the registers hold

// 16 columns of a weight.
struct Panel {
  const bf16* values;   // [K / 2][16][2]
  const float* scales;  // 16 of each group, a whole row of scales apart
};

// A matrix of bfloat16 integers in panels, with scales [G][N] in float32.
struct Weight {
  const bf16* values;  // [N / 16][K / 2][16][2]
  const float* scales;
  int64_t rows;     // K
  int64_t columns;  // N
  int64_t groups;   // G; K / G is even

  int64_t panels() const { return columns / kLanes; }

  Panel panel(int64_t i) const { return {values + i * rows * kLanes, scales + i * kLanes}; }
};

// Rows of bfloat16, `stride` apart.
struct Rows {
  const bf16* data;
  int64_t stride;
  int64_t count;
};

// Two panels of weights of one shape, and two that will be asked for next.
struct Panels {
  Panel low, high;
  const bf16 *next_low, *next_high;
};

// The rows of one tile times two panels of a shape like `w`. Fetches the first F of `next`, two
// panels like these.
template <int R, int F, typename Finish>
void multiply_tile(Rows x, int64_t begin, const Weight& w, Panel low, Panel high,
                   const bf16* const* next, const Finish& finish) {
  __m512 total[R][2], sum[R][2];
  const int64_t depth = w.rows / w.groups;
  const bf16* row = x.data + begin * x.stride;
  Left<R> some;
  for (int64_t group = 0; group < w.groups; ++group) {
#pragma GCC unroll 11
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const int64_t end = (group + 1) * depth;
    for (int64_t first = group * depth, count; first < end; first += count) {
      count = std::min(end - first, kChunk);
      some.read(row + first, x.stride, count);
#pragma GCC unroll 2
      for (int64_t k = 0; k < count; k += 2) {
        const int64_t at = kLanes * (first + k);
        const Pairs left(low.values + at), right(high.values + at);
#pragma GCC unroll 2
        for (int f = 0; f < F; ++f) _mm_prefetch(next[f] + at, _MM_HINT_T1);
#pragma GCC unroll 11
        for (int r = 0; r < R; ++r) {
          sum[r][0] = some.add(sum[r][0], r, k, left);
          sum[r][1] = some.add(sum[r][1], r, k, right);
        }
      }
    }
    const __m512 left = _mm512_loadu_ps(low.scales + group * w.columns);
    const __m512 right = _mm512_loadu_ps(high.scales + group * w.columns);
    if (w.groups == 1) {
#pragma GCC unroll 11
      for (int r = 0; r < R; ++r)
        finish(begin + r, _mm512_mul_ps(sum[r][0], left), _mm512_mul_ps(sum[r][1], right));
      return;
    }
#pragma GCC unroll 11
    for (int r = 0; r < R; ++r) {
      if (group == 0) total[r][0] = total[r][1] = _mm512_setzero_ps();
      total[r][0] = _mm512_fmadd_ps(sum[r][0], left, total[r][0]);
      total[r][1] = _mm512_fmadd_ps(sum[r][1], right, total[r][1]);
    }
  }
#pragma GCC unroll 11
  for (int r = 0; r < R; ++r) finish(begin + r, total[r][0], total[r][1]);
}

template <typename Finish, int... R>
void multiply_tiles(Rows x, const Weight& w, const Panels& panels, const Finish& finish,
                    std::integer_sequence<int, R...>) {
  using Tile = void (*)(Rows, int64_t, const Weight&, Panel, Panel, const bf16* const*,
                        const Finish&);
  static constexpr Tile of_rows[][kTileRows] = {{&multiply_tile<R + 1, 0, Finish>...},
                                                {&multiply_tile<R + 1, 1, Finish>...},
                                                {&multiply_tile<R + 1, 2, Finish>...}};
  const bf16* const next[] = {panels.next_low, panels.next_high};
  const int64_t tiles = (x.count + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = x.count * i / tiles, end = x.count * (i + 1) / tiles;
    // The next panels come from memory, which keeps up with two tiles at a panel each.
    const int64_t left = tiles - 1 - i;
    const int fetch = tiles == 1 ? 2 : left < 2 ? 1 : 0;
    of_rows[fetch][end - begin - 1](x, begin, w, panels.low, panels.high,
                                    fetch == 1 && left == 0 ? next + 1 : next, finish);
  }
}

// Multiplies all rows with two panels; finish(row, low, high) takes the sums of each row.
template <typename Finish>
void multiply(Rows x, const Weight& w, const Panels& panels, const Finish& finish) {
  multiply_tiles(x, w, panels, finish, std::make_integer_sequence<int, kTileRows>());
}

}  // namespace grok1
