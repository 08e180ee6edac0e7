// Prints the floating-point operations a CPU second of the instruction that multiplies bfloat16
// here, with all of its operands in registers: what no product of matrices can surpass.
#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

static double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

#ifdef __AVX512BF16__
constexpr double kOperations = 64;  // 16 sums of two products
#define MULTIPLY "vdpbf16ps"
#else
constexpr double kOperations = 32;  // 16 products in float32, to which bfloat16 is widened
#define MULTIPLY "vfmadd231ps"
#endif

#define TO(sum) MULTIPLY " %%zmm30, %%zmm31, %%zmm" #sum "\n"

int main() {
  constexpr int kRounds = 2000000, kSums = 12;  // as many as keep the units busy
  double best = 1e30;
  for (int trial = 0; trial < 12; ++trial) {
    const double started = cpu_seconds();
    for (int i = 0; i < kRounds; ++i)
      asm volatile(TO(0) TO(1) TO(2) TO(3) TO(4) TO(5) TO(6) TO(7) TO(8) TO(9) TO(10) TO(11)::
                       : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8",
                         "zmm9", "zmm10", "zmm11");
    best = std::min(best, cpu_seconds() - started);
  }
  std::printf("%.0f\n", kOperations * kSums * kRounds / best);
}
