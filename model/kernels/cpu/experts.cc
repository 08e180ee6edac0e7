// A mixture of experts, each on just the rows that chose it.

#include <algorithm>
#include <cstring>
#include <vector>

#include "functions.h"
#include "norm.h"
#include "weights.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

// Which tokens each expert sees: (token, choice) pairs in order of expert, dead tokens left out.
struct Groups {
  std::vector<int32_t> pairs;   // token * choices + choice
  std::vector<int64_t> starts;  // of each expert's in `pairs`, and the end
  std::vector<int64_t> asked;   // the experts that see a token

  Groups(const int32_t* experts, const bool* live, int64_t tokens, int64_t choices, int64_t count)
      : starts(count + 1) {
    std::vector<std::vector<int32_t>> seen(count);
    for (int64_t pair = 0; pair < tokens * choices; ++pair)
      if (live[pair / choices]) seen[experts[pair]].push_back(pair);
    for (int64_t e = 0; e < count; ++e) {
      pairs.insert(pairs.end(), seen[e].begin(), seen[e].end());
      starts[e + 1] = pairs.size();
      if (!seen[e].empty()) asked.push_back(e);
    }
  }

  Rows rows(int64_t expert, const bf16* data, int64_t stride) const {
    return {data + starts[expert] * stride, stride, starts[expert + 1] - starts[expert]};
  }

  // Calls body(expert, item, expert', item') for `each` items of every expert that is asked, one
  // expert after the other, with the item that follows.
  template <typename Body>
  void for_each(Team& team, int64_t each, const Body& body) const {
    const int64_t count = asked.size() * each;
    team.for_each(count, [&](int64_t i) {
      const int64_t next = std::min(i + 1, count - 1);
      body(asked[i / each], i % each, asked[next / each], next % each);
    });
  }
};

// Adds to row t of the residual stream, if it is live, the norm of the sum over choices of
// gate[t] * (gelu(x[t] gate) * (x[t] up)) down. `inputs`, `middle` and `results` are workspace: a
// row for each (token, choice).
ffi::Error experts(ffi::ThreadPool pool, float epsilon, Halves x, Matrix,
                   ffi::BufferR2<ffi::S32> chosen, Matrix gates, ffi::BufferR1<ffi::PRED> live,
                   Vector post_norm, ffi::AnyBuffer gate_values, ffi::AnyBuffer gate_scales,
                   ffi::AnyBuffer up_values, ffi::AnyBuffer up_scales, ffi::AnyBuffer down_values,
                   ffi::AnyBuffer down_scales, ffi::Result<Matrix> hidden,
                   ffi::Result<Halves> inputs, ffi::Result<Halves> middle,
                   ffi::Result<Matrix> results) {
  constexpr int64_t kTokens = 4;
  const Stack gate(gate_values, gate_scales), up(up_values, up_scales);
  const Stack down(down_values, down_scales);
  const int64_t tokens = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t choices = chosen.dimensions()[1], count = gate_values.dimensions()[0];
  const Groups groups(chosen.typed_data(), live.typed_data(), tokens, choices, count);
  const int64_t pairs = groups.pairs.size();
  Team team(pool, pairs * multiplications({gate.at(0), up.at(0), down.at(0)}));

  const int64_t input_stride = inputs->dimensions()[1];
  bf16* input = data_of(inputs);
  team.for_each((pairs + kTokens - 1) / kTokens, [&](int64_t item) {
    for (int64_t i = item * kTokens; i < std::min(pairs, (item + 1) * kTokens); ++i)
      std::memcpy(input + i * input_stride, data_of(x) + groups.pairs[i] / choices * width,
                  width * sizeof(bf16));
  });

  const int64_t wide = middle->dimensions()[1];
  bf16* between = data_of(middle);
  groups.for_each(team, gate.panels(), [&](int64_t e, int64_t panel, int64_t then, int64_t next) {
    const Weight left = gate.at(e), right = up.at(e);
    const Panels panels{left.panel(panel), right.panel(panel), gate.at(then).panel(next).values,
                        up.at(then).panel(next).values};
    bf16* to = between + groups.starts[e] * wide + panel * kLanes;
    multiply(groups.rows(e, input, input_stride), left, panels,
             [&](int64_t row, __m512 g, __m512 u) {
               store_bf16(to + row * wide, _mm512_mul_ps(gelu(g), u));
             });
  });

  float* result = results->typed_data();
  groups.for_each(
      team, down.panels() / 2, [&](int64_t e, int64_t pair, int64_t then, int64_t next) {
        const Weight w = down.at(e), following = down.at(then);
        const Panels panels{w.panel(2 * pair), w.panel(2 * pair + 1),
                            following.panel(2 * next).values, following.panel(2 * next + 1).values};
        const int32_t* place = groups.pairs.data() + groups.starts[e];
        multiply(groups.rows(e, between, wide), w, panels,
                 [&](int64_t row, __m512 low, __m512 high) {
                   float* to = result + place[row] * width + 2 * pair * kLanes;
                   _mm512_storeu_ps(to, low);
                   _mm512_storeu_ps(to + kLanes, high);
                 });
      });

  team.for_each((tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    std::vector<float> mixed(width);
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t) {
      if (!live.typed_data()[t]) continue;
      std::fill(mixed.begin(), mixed.end(), 0.0f);
      for (int64_t c = t * choices; c < (t + 1) * choices; ++c)
        for (int64_t d = 0; d < width; ++d)
          mixed[d] += gates.typed_data()[c] * result[c * width + d];
      add_normed(mixed.data(), post_norm.typed_data(), width, epsilon,
                 hidden->typed_data() + t * width);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_experts, experts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("epsilon")
                                  .Arg<Halves>()
                                  .Arg<Matrix>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<Matrix>()
                                  .Arg<ffi::BufferR1<ffi::PRED>>()
                                  .Arg<Vector>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<Matrix>()
                                  .Ret<Halves>()
                                  .Ret<Halves>()
                                  .Ret<Matrix>());

}  // namespace grok1
