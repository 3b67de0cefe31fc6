/* h_t = a_t h_{t-1} + b_t and its backward, streamed once through memory. A work item is one batch member and
   a tile of neighbouring lanes, whose state stays in the first cache. */
#include "vector.h"

#define WIDEST 1024

/* Lanes of a tile: few enough for sixteen items where that leaves a row of memory worth reading. */
static int64_t width_of(int64_t lanes) {
    int64_t width = (lanes / 16 + 63) / 64 * 64;
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
