/* Functions of vectors of numbers of a state, LANES lanes: glibc's vector functions where there are any, else a
   lane at a time. Which of the two does not depend on the numbers, so that no lane depends on another. Included
   by lanes.h, which defines real and real_v. */
#ifndef WORLDSIM_ELEMENTARY_H
#define WORLDSIM_ELEMENTARY_H

#include <math.h>
#ifdef __linux__
#include <features.h>
#endif

#if SINGLE
#define SCALAR(name) name##f
#else
#define SCALAR(name) name
#endif

#define LANEWISE(name)                                                     \
    static inline real_v lanes_##name(real_v x) {                          \
        for (int i = 0; i < LANES; i++) x[i] = SCALAR(name)(x[i]);         \
        return x;                                                          \
    }
#define LANEWISE_2(name)                                                   \
    static inline real_v lanes_##name(real_v x, real_v y) {                \
        for (int i = 0; i < LANES; i++) x[i] = SCALAR(name)(x[i], y[i]);   \
        return x;                                                          \
    }

/* Its functions take a register of doubles or of floats; floats here fill half of one. */
#if defined(__x86_64__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 35)
#if defined(__AVX512F__) && !SINGLE
#define VECTOR(name, arguments) _ZGVeN8##arguments##_##name
#elif defined(__AVX512F__)
#define VECTOR(name, arguments) _ZGVdN8##arguments##_##name##f
#elif defined(__AVX2__) && !SINGLE
#define VECTOR(name, arguments) _ZGVdN4##arguments##_##name
#elif defined(__AVX__) && !SINGLE
#define VECTOR(name, arguments) _ZGVcN4##arguments##_##name
#elif defined(__AVX__)
#define VECTOR(name, arguments) _ZGVbN4##arguments##_##name##f
#elif !SINGLE
#define VECTOR(name, arguments) _ZGVbN2##arguments##_##name
#endif
#endif
#endif

#ifdef VECTOR
#define ELEMENTARY(name)                                                   \
    real_v VECTOR(name, v)(real_v);                                      \
    static inline real_v lanes_##name(real_v x) { return VECTOR(name, v)(x); }
#define ELEMENTARY_2(name)                                                 \
    real_v VECTOR(name, vv)(real_v, real_v);                             \
    static inline real_v lanes_##name(real_v x, real_v y) { return VECTOR(name, vv)(x, y); }
#else
#define ELEMENTARY(name) LANEWISE(name)
#define ELEMENTARY_2(name) LANEWISE_2(name)
#endif

ELEMENTARY(exp)
ELEMENTARY(expm1)
ELEMENTARY(exp2)
ELEMENTARY(log)
ELEMENTARY(log1p)
ELEMENTARY(log2)
ELEMENTARY(log10)
ELEMENTARY(sin)
ELEMENTARY(cos)
ELEMENTARY(tan)
ELEMENTARY(asin)
ELEMENTARY(acos)
ELEMENTARY(atan)
ELEMENTARY(sinh)
ELEMENTARY(cosh)
ELEMENTARY(tanh)
ELEMENTARY(asinh)
ELEMENTARY(acosh)
ELEMENTARY(atanh)
ELEMENTARY(erf)
ELEMENTARY_2(pow)
ELEMENTARY_2(atan2)
ELEMENTARY_2(hypot)
LANEWISE_2(fmod)
LANEWISE(sqrt)
LANEWISE(floor)
LANEWISE(ceil)
LANEWISE(trunc)
LANEWISE(rint)

#endif
