// Packed weights as XLA hands them over, and rows of activations times some of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace grok1 {

using Matrix = xla::ffi::BufferR2<xla::ffi::F32>;
using Halves = xla::ffi::BufferR2<xla::ffi::BF16>;
using Vector = xla::ffi::BufferR1<xla::ffi::F32>;
using Scalar = xla::ffi::BufferR0<xla::ffi::S32>;

inline const bf16* data_of(const Halves& x) {
  return reinterpret_cast<const bf16*>(x.typed_data());
}

inline bf16* data_of(xla::ffi::Result<Halves>& x) {
  return reinterpret_cast<bf16*>(x->typed_data());
}

// A stack of weights: values [..., N / 16, K / 2, 16, 2] and scales [..., G, N].
class Stack {
 public:
  Stack(const xla::ffi::AnyBuffer& values, const xla::ffi::AnyBuffer& scales) {
    const auto v = values.dimensions(), s = scales.dimensions();
    first_.rows = 2 * v[v.size() - 3];
    first_.columns = kLanes * v[v.size() - 4];
    first_.groups = s[s.size() - 2];
    first_.values = static_cast<const bf16*>(values.untyped_data());
    first_.scales = static_cast<const float*>(scales.untyped_data());
  }

  Weight at(int64_t index) const {
    Weight w = first_;
    w.values += index * w.rows * w.columns;
    w.scales += index * w.groups * w.columns;
    return w;
  }

  int64_t panels() const { return first_.panels(); }

 private:
  Weight first_;
};

// Weights one after another among a handler's arguments, values and scales of each.
inline std::vector<Weight> weights_of(const xla::ffi::RemainingArgs& arguments) {
  std::vector<Weight> weights;
  for (size_t i = 0; i + 1 < arguments.size(); i += 2)
    weights.push_back(Stack(*arguments.get<xla::ffi::AnyBuffer>(i),
                            *arguments.get<xla::ffi::AnyBuffer>(i + 1))
                          .at(0));
  return weights;
}

// What one row takes of multiplications.
inline int64_t multiplications(const std::vector<Weight>& weights) {
  int64_t sum = 0;
  for (const Weight& w : weights) sum += w.rows * w.columns;
  return sum;
}

// x times each weight, side by side, to rows of `out`, `width` apart.
inline void multiply_all(Team& team, Rows x, const std::vector<Weight>& weights, float* out,
                         int64_t width) {
  struct Item {
    const Weight* weight;
    int64_t panel, column, begin, end;
  };
  // Rows in parts of a few tiles, where there would else be too few items to share out evenly.
  constexpr int64_t kPart = 4 * kTileRows, kEach = 16;
  int64_t pairs = 0;
  for (const Weight& w : weights) pairs += w.panels() / 2;
  const int64_t most = std::max<int64_t>((x.count + kPart - 1) / kPart, 1);
  const int64_t parts = std::clamp<int64_t>(kEach * team.threads() / pairs, 1, most);
  std::vector<Item> items;
  int64_t column = 0;
  for (const Weight& w : weights)
    for (int64_t panel = 0; panel < w.panels(); panel += 2, column += 2 * kLanes)
      for (int64_t part = 0; part < parts; ++part)
        items.push_back(
            {&w, panel, column, x.count * part / parts, x.count * (part + 1) / parts});
  team.for_each(items.size(), [&](int64_t i) {
    const Item &item = items[i], &next = items[std::min<int64_t>(i + 1, items.size() - 1)];
    const Panels panels{item.weight->panel(item.panel), item.weight->panel(item.panel + 1),
                        next.weight->panel(next.panel).values,
                        next.weight->panel(next.panel + 1).values};
    const Rows rows{x.data + item.begin * x.stride, x.stride, item.end - item.begin};
    float* to = out + item.begin * width + item.column;
    multiply(rows, *item.weight, panels, [&](int64_t row, __m512 low, __m512 high) {
      _mm512_storeu_ps(to + row * width, low);
      _mm512_storeu_ps(to + row * width + kLanes, high);
    });
  });
}

}  // namespace grok1
