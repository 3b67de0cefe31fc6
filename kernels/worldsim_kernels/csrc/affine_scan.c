/* h_t = a_t h_{t-1} + b_t and its backward, streamed once through memory. A work item is one batch member and
   a tile of neighbouring lanes, whose state stays in the first cache. */
#include "vector.h"

#define WIDEST 4096

/* Lanes of a tile: long runs of memory, yet a tile for every thread. Lanes do not meet, so that their bits do
   not depend on it. */
static int64_t width_of(int64_t batch, int64_t lanes, int threads) {
    int64_t shares = batch > 0 && batch < threads ? (threads + batch - 1) / batch : 1;
    int64_t width = (lanes / shares + 63) / 64 * 64;
    return width < 64 ? 64 : width > WIDEST ? WIDEST : width;
}

#define REAL float
#define NAME(x) x##_f32
#include "affine_scan_body.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(x) x##_f64
#include "affine_scan_body.h"
