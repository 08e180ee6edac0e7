// Teams of two callers on one pool, each with rounds that need what the one before them gave.
//
//   team THREADS ROOM CALLS
#include "parallel.h"

#include <cstdio>
#include <cstdlib>

namespace {

constexpr int64_t kItems = 37;

// Whether every item of every round was done once, and after the round before it.
bool call(xla::ffi::ThreadPool& pool) {
  grok1::Team team(pool, int64_t{1} << 40);
  std::vector<int64_t> here(kItems), there(kItems);
  constexpr int64_t kRounds = 6;
  for (int64_t round = 0; round < kRounds; ++round) {
    team.for_each(0, [](int64_t) { std::abort(); });
    team.for_each(kItems, [&](int64_t i) { there[i] = here[(i + round) % kItems] + 1; });
    std::swap(here, there);
  }
  return std::count(here.begin(), here.end(), kRounds) == kItems;
}

}  // namespace

int main(int, char** arguments) {
  xla::ffi::ThreadPool pool(std::atoi(arguments[1]), std::atoi(arguments[2]));
  std::atomic<bool> right = true;
  const auto caller = [&] {
    for (int i = 0; i < std::atoi(arguments[3]); ++i)
      if (!call(pool)) right = false;
  };
  std::thread other(caller);
  caller();
  other.join();
  std::puts(right ? "right" : "wrong");
}
