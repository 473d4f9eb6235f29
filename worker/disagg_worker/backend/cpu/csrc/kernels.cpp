// What Python calls, by ctypes. Pointers and 64-bit integers only; structs as in library.py.
#include <sys/mman.h>

#include "program.h"

#define API extern "C" __attribute__((visibility("default")))

API int64_t dk_panel_outputs() { return NR; }

// Ask for 2 MiB pages inside [p, p + bytes): weights are streamed, and each 4 KiB page costs an address translation.
API void dk_advise(void* p, int64_t bytes) {
  uintptr_t huge = 2 << 20, begin = ((uintptr_t)p + huge - 1) & ~(huge - 1), end = ((uintptr_t)p + bytes) & ~(huge - 1);
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
}

API void dk_pack(int64_t kind, const void* src, int64_t n, int64_t k, int64_t k_padded, void* dst) { pack(kind, src, n, k, k_padded, dst); }
API void dk_unpack_bf16(const Linear* l, void* dst) { unpack_bf16(*l, (uint16_t*)dst); }
API void dk_linear(const Linear* l, const Array* x, int64_t rows, float* y, int64_t threads) { linear(*l, *x, rows, y, threads); }
API void dk_rms_norm(float* x, const float* delta, const float* w, double eps, int64_t rows, int64_t n, float* y, int64_t threads) {
  rms_norm(x, delta, w, eps, rows, n, y, threads);
}
API void dk_store_qkv(const float* qkv, const Heads* h, const Cache* cache, int64_t layer, const int64_t* positions, const int64_t* slots,
                      int64_t rows, float* q, float* k, float* v, int64_t threads) {
  store_qkv(qkv, *h, *cache, layer, positions, slots, rows, q, k, v, threads);
}
API void dk_gated(const float* x, int64_t rows, int64_t n, float* y, int64_t threads) { gated(x, rows, n, y, threads); }
API void dk_attend(const float* q, int64_t sequences, int64_t heads, const Cache* cache, int64_t layer, const Tables* tables, int64_t window,
                   float* out, int64_t threads) {
  attend(q, sequences, heads, *cache, layer, *tables, window, out, threads);
}
API void dk_run(const Program* p, const Step* s, const Cache* cache, float* logits) { run(*p, *s, *cache, logits); }
