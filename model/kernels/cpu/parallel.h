// Work shared between the calling thread and whatever threads of XLA's pool are free.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace grok1 {

// Runs body(0), ..., body(items - 1), each once and on any thread; returns when all are done. Each
// thread walks through a stretch of its own in order, so that it knows what comes next, and then
// helps with the others'. The caller works too and waits only for items that a thread has begun, so
// it is safe on a thread of the pool itself. No item may depend on another, and none splits a sum:
// results have the same bits for any number of threads.
template <typename Body>
void for_each(xla::ffi::ThreadPool& pool, int64_t items, const Body& body) {
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Shared {
    std::vector<Stretch> stretches;
    alignas(64) std::atomic<int64_t> done{0};
    explicit Shared(int64_t threads) : stretches(threads) {}
  };
  const int64_t threads = std::min(pool.num_threads(), items);
  if (threads <= 0) return;
  auto shared = std::make_shared<Shared>(threads);
  for (int64_t t = 0; t < threads; ++t) {
    shared->stretches[t].next = items * t / threads;
    shared->stretches[t].end = items * (t + 1) / threads;
  }
  // A helper that the pool starts too late finds no item left and does not touch the body.
  auto work = [shared, items, threads, run = &body](int64_t thread) {
    for (int64_t t = thread; t < thread + threads; ++t) {
      Stretch& stretch = shared->stretches[t % threads];
      for (int64_t i; (i = stretch.next.fetch_add(1)) < stretch.end;) {
        (*run)(i);
        if (shared->done.fetch_add(1) + 1 == items) shared->done.notify_all();
      }
    }
  };
  for (int64_t t = 1; t < threads; ++t) pool.Schedule([work, t] { work(t); });
  work(0);
  for (int64_t done; (done = shared->done.load()) < items;) shared->done.wait(done);
}

}  // namespace grok1
