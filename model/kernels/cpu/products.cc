// Products with packed weights, side by side.

#include "weights.h"

namespace grok1 {
namespace {

namespace ffi = xla::ffi;

// x [T, K] times each weight, side by side: [T, N + N' + ...].
ffi::Error matmul(ffi::ThreadPool pool, Halves x, ffi::RemainingArgs arguments,
                  ffi::Result<Matrix> out) {
  const Rows rows{data_of(x), x.dimensions()[1], x.dimensions()[0]};
  const auto weights = weights_of(arguments);
  Team team(pool, rows.count * multiplications(weights));
  multiply_all(team, rows, weights, out->typed_data(), out->dimensions()[1]);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    grok1_matmul, matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Halves>().RemainingArgs().Ret<Matrix>());

}  // namespace grok1
