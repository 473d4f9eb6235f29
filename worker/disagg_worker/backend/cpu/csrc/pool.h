// A small persistent pool: parallel(n, f) runs f(0) .. f(n - 1), f(0) on the caller. Workers spin briefly, then sleep.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
 public:
  template <class F>
  void parallel(int64_t threads, F&& f) {
    if (threads <= 1) return f((int64_t)0);
    std::lock_guard<std::mutex> only(mutex_);  // one region at a time
    while ((int64_t)workers_.size() < threads - 1) grow();
    std::function<void(int64_t)> task(std::ref(f));
    task_ = &task;
    pending_.store(threads - 1, std::memory_order_relaxed);
    for (int64_t i = 0; i < threads - 1; i++) {
      workers_[i]->turn.fetch_add(1, std::memory_order_release);
      workers_[i]->turn.notify_one();
    }
    f((int64_t)0);
    for (int64_t left, spins = 0; (left = pending_.load(std::memory_order_acquire)) != 0;)
      if (++spins > 4000) pending_.wait(left);
      else __builtin_ia32_pause();
  }

 private:
  struct Worker {
    std::atomic<int64_t> turn{0};
    std::thread thread;
  };
  void grow() {
    workers_.push_back(std::make_unique<Worker>());
    Worker* self = workers_.back().get();
    int64_t index = (int64_t)workers_.size();
    self->thread = std::thread([this, self, index] {
      for (int64_t seen = 0;; seen++) {
        for (int64_t spins = 0; self->turn.load(std::memory_order_acquire) == seen;)
          if (++spins > 4000) self->turn.wait(seen);
          else __builtin_ia32_pause();
        (*task_)(index);
        if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
      }
    });
    self->thread.detach();
  }
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::function<void(int64_t)>* task_ = nullptr;
  std::atomic<int64_t> pending_{0};
};

// Never destroyed: detached threads may still look at it while the process ends.
static Pool& pool() {
  static Pool* one = new Pool;
  return *one;
}

// The part of `count` items that thread `index` of `threads` does: [begin, end).
struct Part {
  int64_t begin, end;
  Part(int64_t count, int64_t index, int64_t threads) : begin(count * index / threads), end(count * (index + 1) / threads) {}
};
