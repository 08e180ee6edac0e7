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

constexpr int kTileRows = 12;  // with two sums a row, what the registers hold

// 16 columns of a weight.
struct Panel {
  const bf16* values;   // [K / 2][16][2]
  const bf16* next;     // the panel that will be asked for next
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

  // Panel i, when they are taken `step` at a time.
  Panel panel(int64_t i, int64_t step) const {
    const int64_t next = std::min(i + step, panels() - 1);
    return {values + i * rows * kLanes, values + next * rows * kLanes, scales + i * kLanes};
  }
};

// Rows of bfloat16, `stride` apart.
struct Rows {
  const bf16* data;
  int64_t stride;
  int64_t count;
};

// The rows of one tile times two panels of a shape like `w`.
template <int R, typename Finish>
void multiply_tile(Rows x, int64_t begin, const Weight& w, Panel low, Panel high, bool fetch_next,
                   const Finish& finish) {
  __m512 total[R][2], sum[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
  const int64_t depth = w.rows / w.groups;
  const bf16* row = x.data + begin * x.stride;
  Left<R> some;
  for (int64_t group = 0; group < w.groups; ++group) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const int64_t end = (group + 1) * depth;
    for (int64_t first = group * depth, count; first < end; first += count) {
      count = std::min(end - first, kChunk);
      some.read(row + first, x.stride, count);
      for (int64_t k = 0; k < count; k += 2) {
        const int64_t at = kLanes * (first + k);
        const Pairs left(low.values + at), right(high.values + at);
        if (fetch_next) {
          _mm_prefetch(low.next + at, _MM_HINT_T1);
          _mm_prefetch(high.next + at, _MM_HINT_T1);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          sum[r][0] = some.add(sum[r][0], r, k, left);
          sum[r][1] = some.add(sum[r][1], r, k, right);
        }
      }
    }
    const __m512 left = _mm512_loadu_ps(low.scales + group * w.columns);
    const __m512 right = _mm512_loadu_ps(high.scales + group * w.columns);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      total[r][0] = _mm512_fmadd_ps(sum[r][0], left, total[r][0]);
      total[r][1] = _mm512_fmadd_ps(sum[r][1], right, total[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) finish(begin + r, total[r][0], total[r][1]);
}

template <typename Finish, int... R>
void multiply_tiles(Rows x, const Weight& w, Panel low, Panel high, const Finish& finish,
                    std::integer_sequence<int, R...>) {
  using Tile = void (*)(Rows, int64_t, const Weight&, Panel, Panel, bool, const Finish&);
  static constexpr Tile of_rows[] = {&multiply_tile<R + 1, Finish>...};
  const int64_t tiles = (x.count + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = x.count * i / tiles, end = x.count * (i + 1) / tiles;
    // By the last tile the panels are in the near cache: time to fetch the next from memory.
    of_rows[end - begin - 1](x, begin, w, low, high, i == tiles - 1, finish);
  }
}

// Multiplies all rows with two panels; finish(row, low, high) takes the sums of each row.
template <typename Finish>
void multiply(Rows x, const Weight& w, Panel low, Panel high, const Finish& finish) {
  multiply_tiles(x, w, low, high, finish, std::make_integer_sequence<int, kTileRows>());
}

}  // namespace grok1
