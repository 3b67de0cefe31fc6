/* Numbers of a state in lanes, a row in each: the vocabulary of sources that are generated. They define SINGLE,
   1 for states of floats and 0 of doubles, before they include this file. Times are doubles always. */
#ifndef WORLDSIM_LANES_H
#define WORLDSIM_LANES_H

#include "vector.h"

#define LANES LANES_f64
#define INLINE static inline __attribute__((always_inline))

#if SINGLE
typedef float real;
typedef float real_v __attribute__((vector_size(REGISTER / 2)));
typedef int32_t truth_v __attribute__((vector_size(REGISTER / 2)));
#define NARROW(x) __builtin_convertvector(x, real_v)
#define WIDEN(x) __builtin_convertvector(x, f64v)
#define WIDEN_TRUTH(x) __builtin_convertvector(x, i64v)
#define NARROW_TRUTH(x) __builtin_convertvector(x, truth_v)
#else
typedef double real;
typedef f64v real_v;
typedef i64v truth_v;
#define NARROW(x) (x)
#define WIDEN(x) (x)
#define WIDEN_TRUTH(x) (x)
#define NARROW_TRUTH(x) (x)
#endif

#include "elementary.h"

INLINE real_v splat(real x) { return x - (real_v){0}; }
INLINE real_v choose(truth_v mask, real_v yes, real_v no) {
    return (real_v)((mask & (truth_v)yes) | (~mask & (truth_v)no));
}
INLINE f64v choose_f64(i64v mask, f64v yes, f64v no) {
    return (f64v)((mask & (i64v)yes) | (~mask & (i64v)no));
}
/* NaN if one of the two is. */
INLINE real_v least(real_v x, real_v y) {
    return choose(x != x, x, choose(y != y, y, choose(y < x, y, x)));
}
INLINE real_v greatest(real_v x, real_v y) {
    return choose(x != x, x, choose(y != y, y, choose(y > x, y, x)));
}
INLINE f64v min_f64(f64v x, f64v y) { return choose_f64(y < x, y, x); }
INLINE f64v max_f64(f64v x, f64v y) { return choose_f64(y > x, y, x); }
INLINE f64v abs_f64(f64v x) { return (f64v)((i64v)x & INT64_MAX); }
#if SINGLE
INLINE real_v magnitude(real_v x) { return (real_v)((truth_v)x & INT32_MAX); }
#else
INLINE real_v magnitude(real_v x) { return abs_f64(x); }
#endif

INLINE int any(i64v mask) {
#ifdef __AVX512F__
    return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    int64_t found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found != 0;
#endif
}

#endif
