// Products with packed weights: matrices side by side, and a mixture of experts.

#include <algorithm>
#include <cstring>
#include <vector>

#include "functions.h"
#include "parallel.h"
#include "tile.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

const bf16* data_of(ffi::BufferR2<ffi::BF16> x) {
  return reinterpret_cast<const bf16*>(x.typed_data());
}

bf16* data_of(ffi::Result<ffi::BufferR2<ffi::BF16>> x) {
  return reinterpret_cast<bf16*>(x->typed_data());
}

// Weight `index` of a stack: values [..., N / 16, K / 2, 16, 2] and scales [..., G, N].
Weight weight_of(const ffi::AnyBuffer& values, const ffi::AnyBuffer& scales, int64_t index) {
  const auto v = values.dimensions(), s = scales.dimensions();
  Weight w;
  w.rows = 2 * v[v.size() - 3];
  w.columns = kLanes * v[v.size() - 4];
  w.groups = s[s.size() - 2];
  w.values = static_cast<const bf16*>(values.untyped_data()) + index * w.rows * w.columns;
  w.scales = static_cast<const float*>(scales.untyped_data()) + index * w.groups * w.columns;
  return w;
}

// x [T, K] times each weight, side by side: [T, N + N' + ...]. What follows x are values and scales
// of one weight after another.
ffi::Error matmul(ffi::ThreadPool pool, ffi::BufferR2<ffi::BF16> x, ffi::RemainingArgs arguments,
                  ffi::Result<ffi::BufferR2<ffi::F32>> out) {
  const Rows rows{data_of(x), x.dimensions()[1], x.dimensions()[0]};
  const int64_t width = out->dimensions()[1];
  struct Item {
    Weight weight;
    int64_t panel;
    float* to;
  };
  std::vector<Item> items;
  float* result = out->typed_data();
  for (size_t i = 0; i + 1 < arguments.size(); i += 2) {
    const Weight w =
        weight_of(*arguments.get<ffi::AnyBuffer>(i), *arguments.get<ffi::AnyBuffer>(i + 1), 0);
    for (int64_t panel = 0; panel < w.panels(); panel += 2, result += 2 * kLanes)
      items.push_back({w, panel, result});
  }
  for_each(pool, items.size(), [&](int64_t i) {
    const auto& [w, panel, to] = items[i];
    const auto& [next, next_panel, _] = items[std::min<int64_t>(i + 1, items.size() - 1)];
    const Panels panels{w.panel(panel), w.panel(panel + 1), next.panel(next_panel).values,
                        next.panel(next_panel + 1).values};
    multiply(rows, w, panels, [&, to = to](int64_t row, __m512 low, __m512 high) {
      _mm512_storeu_ps(to + row * width, low);
      _mm512_storeu_ps(to + row * width + kLanes, high);
    });
  });
  return ffi::Error::Success();
}

// Which tokens each expert sees: (token, choice) pairs in order of expert, dead tokens left out.
struct Groups {
  std::vector<int32_t> pairs;   // token * choices + choice
  std::vector<int64_t> starts;  // of each expert's in `pairs`, and the end

  Groups(const int32_t* experts, const bool* live, int64_t tokens, int64_t choices, int64_t count)
      : starts(count + 1) {
    std::vector<std::vector<int32_t>> seen(count);
    for (int64_t pair = 0; pair < tokens * choices; ++pair)
      if (live[pair / choices]) seen[experts[pair]].push_back(pair);
    for (int64_t e = 0; e < count; ++e) {
      pairs.insert(pairs.end(), seen[e].begin(), seen[e].end());
      starts[e + 1] = pairs.size();
    }
  }

  Rows rows(int64_t expert, const bf16* data, int64_t stride) const {
    return {data + starts[expert] * stride, stride, starts[expert + 1] - starts[expert]};
  }
};

// Some panels of each expert that sees a token, one expert after the other.
struct Items {
  std::vector<int64_t> experts;
  int64_t each;  // items of an expert

  Items(const Groups& groups, int64_t each) : each(each) {
    for (size_t e = 0; e + 1 < groups.starts.size(); ++e)
      if (groups.starts[e] < groups.starts[e + 1]) experts.push_back(e);
  }

  int64_t count() const { return experts.size() * each; }

  // Calls body(expert, item, expert, item) with an item and the one that follows.
  template <typename Body>
  void at(int64_t i, const Body& body) const {
    const int64_t next = std::min(i + 1, count() - 1);
    body(experts[i / each], i % each, experts[next / each], next % each);
  }
};

constexpr int64_t kTokens = 16;

// out[t] = sum over choices of gate[t] * (gelu(x[t] gate) * (x[t] up)) down, zeros where not live.
// `inputs`, `hidden` and `results` are workspace: a row for each (token, choice).
ffi::Error mixture(ffi::ThreadPool pool, ffi::BufferR2<ffi::BF16> x,
                   ffi::BufferR2<ffi::S32> experts, ffi::BufferR2<ffi::F32> gates,
                   ffi::BufferR1<ffi::PRED> live, ffi::AnyBuffer gate, ffi::AnyBuffer gate_scales,
                   ffi::AnyBuffer up, ffi::AnyBuffer up_scales, ffi::AnyBuffer down,
                   ffi::AnyBuffer down_scales, ffi::Result<ffi::BufferR2<ffi::F32>> out,
                   ffi::Result<ffi::BufferR2<ffi::BF16>> inputs,
                   ffi::Result<ffi::BufferR2<ffi::BF16>> hidden,
                   ffi::Result<ffi::BufferR2<ffi::F32>> results) {
  const int64_t tokens = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t choices = experts.dimensions()[1], count = gate.dimensions()[0];
  const Groups groups(experts.typed_data(), live.typed_data(), tokens, choices, count);

  const int64_t input_stride = inputs->dimensions()[1];
  bf16* input = data_of(inputs);
  const int64_t pairs = groups.pairs.size();
  for_each(pool, (pairs + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t i = item * kTokens; i < std::min(pairs, (item + 1) * kTokens); ++i)
      std::memcpy(input + i * input_stride, data_of(x) + groups.pairs[i] / choices * width,
                  width * sizeof(bf16));
  });

  const int64_t wide = hidden->dimensions()[1];
  bf16* middle = data_of(hidden);
  const Items gated(groups, weight_of(gate, gate_scales, 0).panels());
  for_each(pool, gated.count(), [&](int64_t i) {
    gated.at(i, [&](int64_t expert, int64_t panel, int64_t next, int64_t next_panel) {
      const Weight left = weight_of(gate, gate_scales, expert);
      const Weight right = weight_of(up, up_scales, expert);
      const Panels panels{left.panel(panel), right.panel(panel),
                          weight_of(gate, gate_scales, next).panel(next_panel).values,
                          weight_of(up, up_scales, next).panel(next_panel).values};
      bf16* to = middle + groups.starts[expert] * wide + panel * kLanes;
      multiply(groups.rows(expert, input, input_stride), left, panels,
               [&](int64_t row, __m512 g, __m512 u) {
                 const __m256i gated = to_bf16(_mm512_mul_ps(gelu(g), u));
                 _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * wide), gated);
               });
    });
  });

  float* result = results->typed_data();
  const Items summed(groups, weight_of(down, down_scales, 0).panels() / 2);
  for_each(pool, summed.count(), [&](int64_t i) {
    summed.at(i, [&](int64_t expert, int64_t pair, int64_t next, int64_t next_pair) {
      const Weight w = weight_of(down, down_scales, expert);
      const Weight following = weight_of(down, down_scales, next);
      const Panels panels{w.panel(2 * pair), w.panel(2 * pair + 1),
                          following.panel(2 * next_pair).values,
                          following.panel(2 * next_pair + 1).values};
      const int32_t* pairs = groups.pairs.data() + groups.starts[expert];
      multiply(groups.rows(expert, middle, wide), w, panels,
               [&](int64_t row, __m512 low, __m512 high) {
                 float* to = result + pairs[row] * width + 2 * pair * kLanes;
                 _mm512_storeu_ps(to, low);
                 _mm512_storeu_ps(to + kLanes, high);
               });
    });
  });

  float* mixed = out->typed_data();
  for_each(pool, (tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t) {
      float* to = mixed + t * width;
      std::fill(to, to + width, 0.0f);
      if (!live.typed_data()[t]) continue;
      for (int64_t c = t * choices; c < (t + 1) * choices; ++c)
        for (int64_t d = 0; d < width; ++d) to[d] += gates.typed_data()[c] * result[c * width + d];
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_matmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::BF16>>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR2<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_mixture, mixture,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::BF16>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::PRED>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::BF16>>()
                                  .Ret<ffi::BufferR2<ffi::BF16>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());

}  // namespace grok1
