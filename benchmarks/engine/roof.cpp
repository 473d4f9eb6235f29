// The roof of memory: the best of a few plain ways to read so many bytes once, in huge pages, by one thread. Prints GB/s, one line a way.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

typedef uint64_t v8 __attribute__((vector_size(64)));
constexpr size_t HUGE_BYTES = 2 << 20;

template <int STREAMS, int AHEAD>
__attribute__((noinline)) static uint64_t read_all(const char* from, size_t n) {
    v8 sums[STREAMS] = {};
    const size_t part = n / STREAMS / 64 * 64;
    for (size_t i = 0; i < part; i += 64)
#pragma GCC unroll 8
        for (int s = 0; s < STREAMS; s++) {
            if (AHEAD) __builtin_prefetch(from + s * part + i + AHEAD);
            sums[s] ^= *(const v8*)(from + s * part + i);
        }
    v8 all = sums[0];
    for (int s = 1; s < STREAMS; s++) all ^= sums[s];
    uint64_t out = 0;
    for (int i = 0; i < 8; i++) out ^= all[i];
    return out;
}

static double cpu_s() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(int, char** arguments) {
    const size_t n = strtoull(arguments[1], nullptr, 10) / HUGE_BYTES * HUGE_BYTES;
    char* memory = (char*)mmap(nullptr, n + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    memory = (char*)(((uintptr_t)memory + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
    madvise(memory, n, MADV_HUGEPAGE);
    for (size_t i = 0; i < n; i += 8) *(uint64_t*)(memory + i) = i;
    uint64_t (*const ways[])(const char*, size_t) = {read_all<1, 0>, read_all<2, 0>, read_all<4, 0>, read_all<1, 512>, read_all<2, 1024>, read_all<4, 512>};
    volatile uint64_t sink = 0;
    for (const auto way : ways) {
        std::vector<double> times;
        for (int i = 0; i < 7; i++) {
            const double start = cpu_s();
            sink = sink + way(memory, n);
            times.push_back(cpu_s() - start);
        }
        std::sort(times.begin(), times.end());
        printf("%.3f\n", n / times[times.size() / 2] / 1e9);
    }
}
