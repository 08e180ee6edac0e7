// Work shared between the calling thread and whatever threads of XLA's pool are free.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace grok1 {

// Runs body(0), ..., body(items - 1), each once, in any order and on any thread; returns when all
// are done. The caller works too and waits only for items that a thread has begun, so it is safe
// on a thread of the pool itself. No item may depend on another, and none splits a sum: results
// have the same bits for any number of threads.
template <typename Body>
void for_each(xla::ffi::ThreadPool& pool, int64_t items, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  // A helper that the pool starts too late finds no item left and does not touch the body.
  auto work = [shared, items, run = &body] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < items;) {
      (*run)(i);
      if (shared->done.fetch_add(1) + 1 == items) shared->done.notify_all();
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), items) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  for (int64_t done; (done = shared->done.load()) < items;) shared->done.wait(done);
}

}  // namespace grok1
