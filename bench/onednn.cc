// Prints the floating-point operations a CPU second of oneDNN's product with packed weights:
// [rows, width] times [width, columns], bf16 or f32 with float32 sums, weight after weight.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

static double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

int main(int count, char** argument) {
  if (count != 6) return 2;
  const long rows = std::atol(argument[1]), width = std::atol(argument[2]);
  const long columns = std::atol(argument[3]), weights = std::atol(argument[4]);
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto f32 = memory::data_type::f32;
  const auto operand = std::strcmp(argument[5], "bf16") ? f32 : memory::data_type::bf16;
  const auto plain = memory::format_tag::ab, any = memory::format_tag::any;
  const memory::desc x({rows, width}, operand, plain), w({width, columns}, operand, any);
  const memory::desc y({rows, columns}, f32, plain);
  const dnnl::matmul::primitive_desc choice(engine, x, w, y);
  const dnnl::matmul product(choice);
  memory input(x, engine), output(y, engine);
  std::memset(input.get_data_handle(), 0, x.get_size());
  std::vector<memory> packed;
  for (long i = 0; i < weights; ++i) {
    packed.emplace_back(choice.weights_desc(), engine);
    // Written to, so that it has memory of its own.
    std::memset(packed.back().get_data_handle(), 0, choice.weights_desc().get_size());
  }
  double best = 1e30;
  for (int trial = 0; trial < 12; ++trial) {
    const double started = cpu_seconds();
    for (auto& weight : packed)
      product.execute(stream,
                      {{DNNL_ARG_SRC, input}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, output}});
    stream.wait();
    const double took = cpu_seconds() - started;
    if (took < best) best = took;
  }
  std::printf("%.0f\n", 2.0 * rows * width * columns * weights / best);
}
