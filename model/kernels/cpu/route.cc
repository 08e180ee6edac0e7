// From attention's result to what the experts read, and which of them.

#include <algorithm>
#include <limits>
#include <vector>

#include "functions.h"
#include "norm.h"
#include "weights.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

// x [D] times router [D, E], in float32, to `logits` [E].
void ask(const float* x, const float* router, int64_t width, int64_t experts, float* logits) {
  constexpr int64_t kSums = 4;  // so that none waits for itself; D is a multiple
  for (int64_t e = 0; e < experts; e += kLanes) {
    const __mmask16 lanes = first_lanes(experts - e);
    __m512 sums[kSums] = {};
    for (int64_t d = 0; d < width; d += kSums)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSums; ++i)
        sums[i] = _mm512_fmadd_ps(
            _mm512_set1_ps(x[d + i]),
            _mm512_maskz_loadu_ps(lanes, router + (d + i) * experts + e), sums[i]);
    const __m512 sum =
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_mask_storeu_ps(logits + e, lanes, sum);
  }
}

// Turns logits [E] into their softmax.
void softmax(float* logits, int64_t experts) {
  const __m512 most = _mm512_set1_ps(*std::max_element(logits, logits + experts));
  __m512 sums = _mm512_setzero_ps();
  for (int64_t e = 0; e < experts; e += kLanes) {
    const __mmask16 lanes = first_lanes(experts - e);
    const __m512 less = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, logits + e), most);
    const __m512 share =
        _mm512_maskz_mov_ps(lanes, exp2(_mm512_mul_ps(less, _mm512_set1_ps(kLog2e))));
    sums = _mm512_add_ps(sums, share);
    _mm512_mask_storeu_ps(logits + e, lanes, share);
  }
  const float sum = _mm512_reduce_add_ps(sums);
  for (int64_t e = 0; e < experts; ++e) logits[e] /= sum;
}

// The likeliest experts, the first of those that are as likely; takes them out of `shares`.
void choose(float* shares, int64_t experts, int64_t choices, int32_t* chosen, float* gates) {
  for (int64_t c = 0; c < choices; ++c) {
    const int64_t e = std::max_element(shares, shares + experts) - shares;
    chosen[c] = e;
    gates[c] = shares[e];
    shares[e] = -std::numeric_limits<float>::infinity();
  }
}

// Adds attention's output to the first `used` rows of the residual stream, and gives what experts
// read of it, [T, D], which of them [T, choices], and how much their answers count. `outputs` is
// workspace.
ffi::Error route(ffi::ThreadPool pool, float epsilon, Halves mixed, Matrix, Scalar used,
                 Vector post_norm, Vector moe_norm, Matrix router, ffi::RemainingArgs arguments,
                 ffi::Result<Matrix> hidden, ffi::Result<Halves> x,
                 ffi::Result<ffi::BufferR2<ffi::S32>> experts, ffi::Result<Matrix> gates,
                 ffi::Result<Matrix> outputs) {
  constexpr int64_t kTokens = 4;
  const int64_t tokens = used.typed_data()[0], width = hidden->dimensions()[1];
  const int64_t count = router.dimensions()[1], choices = experts->dimensions()[1];
  const auto weights = weights_of(arguments);
  Team team(pool, tokens * multiplications(weights));
  const Rows rows{data_of(mixed), mixed.dimensions()[1], tokens};
  multiply_all(team, rows, weights, outputs->typed_data(), width);
  team.for_each((tokens + kTokens - 1) / kTokens, [&](int64_t item) {
    std::vector<float> normed(width), shares(count);
    for (int64_t t = item * kTokens; t < std::min(tokens, (item + 1) * kTokens); ++t) {
      float* stream = hidden->typed_data() + t * width;
      add_normed(outputs->typed_data() + t * width, post_norm.typed_data(), width, epsilon, stream);
      bf16* operand = data_of(x) + t * width;
      norm(stream, moe_norm.typed_data(), width, epsilon, [&](int64_t i, __m512 value) {
        _mm512_storeu_ps(normed.data() + i, value);
        store_bf16(operand + i, value);
      });
      ask(normed.data(), router.typed_data(), width, count, shares.data());
      softmax(shares.data(), count);
      choose(shares.data(), count, choices, experts->typed_data() + t * choices,
             gates->typed_data() + t * choices);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grok1_route, route,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("epsilon")
                                  .Arg<Halves>()
                                  .Arg<Matrix>()
                                  .Arg<Scalar>()
                                  .Arg<Vector>()
                                  .Arg<Vector>()
                                  .Arg<Matrix>()
                                  .RemainingArgs()
                                  .Ret<Matrix>()
                                  .Ret<Halves>()
                                  .Ret<ffi::BufferR2<ffi::S32>>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>());

}  // namespace grok1
