/* Row operations (rows.py has their equations), in float and in double. Each reads its rows once from memory;
   what it reads again is in the first-level cache. */
#include "vector.h"

#define BLOCK 128 /* rows of one work item; their sums are added up in order */

/* 1 / (1 + e^-a) with the exponent at most zero. */
static inline f32v sigmoid_f32(f32v a) {
    const i32v magnitude = (i32v)a & 0x7fffffff;
    const f32v e = exp_f32(-(f32v)magnitude);
    return either_f32((i32v)a < 0, e / (1 + e), 1 / (1 + e));
}

static inline f64v sigmoid_f64(f64v a) {
    for (int i = 0; i < LANES_f64; i++) a[i] = 1 / (1 + exp(-a[i]));
    return a;
}

#define REAL float
#define VEC f32v
#define VECU f32vu
#define NAME(f) f##_f32
#include "rows.h"

#undef REAL
#undef VEC
#undef VECU
#undef NAME
#define REAL double
#define VEC f64v
#define VECU f64vu
#define NAME(f) f##_f64
#include "rows.h"
