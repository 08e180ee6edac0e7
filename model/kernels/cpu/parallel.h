// Work shared between the calling thread and whatever threads of XLA's pool are free.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace grok1 {

// The threads that work off one round of items after another, as long as the team lives.
//
// The caller works too and waits only for items that a thread has begun: a helper that the pool
// starts late finds no item left. A pool whose queue is full runs a helper on the caller's own
// thread; that one has nothing to wait for and leaves. No item may depend on another of its round,
// and none splits a sum: results have the same bits for any number of threads.
class Team {
 public:
  // For work of so many multiplications in all, which says how many threads are worth waking.
  Team(xla::ffi::ThreadPool& pool, int64_t multiplications)
      : threads_(std::clamp<int64_t>(multiplications / kEach, 1,
                                     std::max<int64_t>(pool.num_threads(), 1))),
        last_(std::make_shared<Round>()) {
    const auto caller = std::this_thread::get_id();
    // Small work is over before the pool wakes: helpers that come too late must not pile up.
    for (int64_t t = 1; t < threads_ && asleep_ < pool.num_threads(); ++t) {
      ++asleep_;
      pool.Schedule([t, caller, first = last_] {
        --asleep_;
        if (std::this_thread::get_id() == caller) return;
        for (auto round = first; round; round = round->following()) round->work(t);
      });
    }
  }

  ~Team() { last_->end(nullptr); }
  Team(const Team&) = delete;

  int64_t threads() const { return threads_; }

  // Runs body(0), ..., body(items - 1), each once and on any thread; returns when all are done. A
  // thread walks through a stretch of its own in order, so that it knows what comes next, and then
  // helps with the others'.
  template <typename Body>
  void for_each(int64_t items, const Body& body) {
    const auto run = [](const void* body, int64_t i) { (*static_cast<const Body*>(body))(i); };
    auto round = std::make_shared<Round>(run, &body, items, threads_);
    last_->end(round);
    last_ = round;
    round->work(0);
    round->wait();
  }

 private:
  class Round {
   public:
    Round() = default;
    Round(void (*run)(const void*, int64_t), const void* body, int64_t items, int64_t threads)
        : run_(run), body_(body), items_(items), stretches_(threads) {
      for (int64_t t = 0; t < threads; ++t) {
        stretches_[t].next = items * t / threads;
        stretches_[t].end = items * (t + 1) / threads;
      }
    }

    void work(int64_t thread) {
      const int64_t threads = stretches_.size();
      int64_t done = 0;
      for (int64_t t = thread; t < thread + threads; ++t) {
        Stretch& stretch = stretches_[t % threads];
        for (int64_t i; (i = stretch.next.fetch_add(1)) < stretch.end; ++done) run_(body_, i);
      }
      done_ += done;
    }

    void wait() { wait_until(done_, items_); }

    void end(std::shared_ptr<Round> next) {
      next_ = std::move(next);
      ended_ = 1;
    }

    // The next round, once there is one; none if this was the last.
    std::shared_ptr<Round> following() {
      wait_until(ended_, 1);
      return next_;
    }

   private:
    struct alignas(64) Stretch {
      std::atomic<int64_t> next;
      int64_t end;
    };

    // Rounds are short: a thread that slept would wake too late.
    static void wait_until(const std::atomic<int64_t>& value, int64_t wanted) {
      constexpr int kLooks = 1000;  // some 20 microseconds, before others are let in
      for (int looks = 0; value != wanted;) {
        if (++looks < kLooks) {
          _mm_pause();
        } else {
          looks = kLooks;
          std::this_thread::yield();
        }
      }
    }

    void (*run_)(const void*, int64_t) = nullptr;
    const void* body_ = nullptr;
    int64_t items_ = 0;
    std::vector<Stretch> stretches_;
    std::shared_ptr<Round> next_;
    alignas(64) std::atomic<int64_t> done_{0};
    std::atomic<int64_t> ended_{0};
  };

  static constexpr int64_t kEach = 1 << 15;  // for less, no thread is asked to help

  static inline std::atomic<int64_t> asleep_{0};  // helpers that the pools have not started yet

  int64_t threads_;
  std::shared_ptr<Round> last_;
};

}  // namespace grok1
