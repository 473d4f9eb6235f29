// A few threads that wait for parts of one job at a time. With one thread, everything runs in the
// caller.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
  public:
    explicit Pool(int threads) : parts_(threads) {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
            round_++;
        }
        wake_.notify_all();
        for (auto& w : workers_) w.join();
    }
    // Call f(part, parts) once for every part and return when all calls have ended.
    template <class F>
    void run(const F& f) {
        if (parts_ == 1) {
            f(0, 1);
            return;
        }
        std::function<void(int, int)> job = std::cref(f);
        {
            std::lock_guard<std::mutex> hold(mutex_);
            job_ = &job;
            left_ = parts_ - 1;
            round_++;
        }
        wake_.notify_all();
        f(0, parts_);
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return left_ == 0; });
    }

  private:
    void work(int part) {
        uint64_t seen = 0;
        for (;;) {
            const std::function<void(int, int)>* job;
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return round_ != seen; });
                seen = round_;
                if (stop_) return;
                job = job_;
            }
            (*job)(part, parts_);
            std::lock_guard<std::mutex> hold(mutex_);
            if (--left_ == 0) done_.notify_one();
        }
    }
    const int parts_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int, int)>* job_ = nullptr;
    int left_ = 0;
    uint64_t round_ = 0;
    bool stop_ = false;
};
