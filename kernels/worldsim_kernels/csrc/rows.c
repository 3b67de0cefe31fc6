/* Row operations (rows.py has their equations), in float and in double. Each reads its rows once from memory;
   what it reads again is in the first-level cache. */
#include "vector.h"

#define BLOCK 128 /* rows of one work item; their sums are added up in order */

/* 1 / (1 + e^-a) with the exponent at most zero. */
static inline f32x16 sigmoid_f32(f32x16 a) {
    const i32x16 sign = (i32x16)a < 0, magnitude = (i32x16)a & 0x7fffffff;
    const f32x16 e = exp_f32x16(-(f32x16)magnitude), small = e / (1 + e), large = 1 / (1 + e);
    return (f32x16)((sign & (i32x16)small) | (~sign & (i32x16)large));
}

static inline f64x8 sigmoid_f64(f64x8 a) {
    for (int i = 0; i < 8; i++) a[i] = 1 / (1 + exp(-a[i]));
    return a;
}

#define REAL float
#define VEC f32x16
#define VECU f32x16u
#define LANES 16
#define SIGMOID sigmoid_f32
#define NAME(f) f##_f32
#include "rows.h"

#undef REAL
#undef VEC
#undef VECU
#undef LANES
#undef SIGMOID
#undef NAME
#define REAL double
#define VEC f64x8
#define VECU f64x8u
#define LANES 8
#define SIGMOID sigmoid_f64
#define NAME(f) f##_f64
#include "rows.h"
