/* Normal numbers of counters: Philox4x32-10 and Box-Muller (solve/philox.py has the equations). Products and sums
   must not be contracted, so that every backend rounds alike. */
#ifndef WORLDSIM_NORMALS_H
#define WORLDSIM_NORMALS_H

#include "vector.h"

#define LOW 0xFFFFFFFFull

typedef uint64_t u64v __attribute__((vector_size(REGISTER), aligned(REGISTER)));

static inline u64v splat_u64(uint64_t x) { return x + (u64v){0}; }

/* The product of the low halves of the lanes of x with m < 2^32. */
static inline u64v product(u64v x, uint64_t m) {
#if defined(__AVX512F__)
    return (u64v)_mm512_mul_epu32((__m512i)x, (__m512i)splat_u64(m));
#elif defined(__AVX2__)
    return (u64v)_mm256_mul_epu32((__m256i)x, (__m256i)splat_u64(m));
#else
    return (x & LOW) * m;
#endif
}

/* Ten rounds (Salmon, Moraes, Dror, Shaw 2011). Only the low halves of the lanes count. */
static inline __attribute__((always_inline)) void philox(u64v c[4], uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        u64v a = product(c[0], 0xD2511F53u), b = product(c[2], 0xCD9E8D57u);
        c[0] = (b >> 32) ^ c[1] ^ splat_u64(k0);
        c[1] = b;
        c[2] = (a >> 32) ^ c[3] ^ splat_u64(k1);
        c[3] = a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

/* (k + 1/2) / 2^52 for the highest 52 bits k. */
static inline f64v unit(u64v bits) {
    return (f64v)((bits >> 12) | splat_u64(0x3FF0000000000000ull)) - splat_f64(1 - 0x1p-53);
}

/* Two normal numbers a lane from the four words. */
static inline __attribute__((always_inline)) void normals(u64v w[4], f64v out[2]) {
    f64v u = unit((w[1] << 32) | (w[0] & LOW));
    u64v turn = (w[3] << 32) | (w[2] & LOW);
    i64v e = ((i64v)u - (i64v)splat_u64(0x3FE6A09E667F3BCDull)) >> 52;
    f64v m = (f64v)((i64v)u - (e << 52));
    f64v s = (m - 1.0) / (m + 1.0), z = s * s;
    f64v p = z * (1.0 / 21) + 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    f64v log = s + s * (z * p);
    f64v r = root_f64(log * -4.0 - __builtin_convertvector(e, f64v) * 1.3862943611198906);
    f64v x = (unit(turn << 2) - 0.5) * 1.5707963267948966, y = x * x;
    f64v a = y * (-1.0 / 1307674368000) + 1.0 / 6227020800;
    a = a * y + -1.0 / 39916800;
    a = a * y + 1.0 / 362880;
    a = a * y + -1.0 / 5040;
    a = a * y + 1.0 / 120;
    a = a * y + -1.0 / 6;
    f64v sine = x + x * (y * a);
    f64v b = y * (1.0 / 20922789888000) + -1.0 / 87178291200;
    b = b * y + 1.0 / 479001600;
    b = b * y + -1.0 / 3628800;
    b = b * y + 1.0 / 40320;
    b = b * y + -1.0 / 720;
    b = b * y + 1.0 / 24;
    b = b * y + -1.0 / 2;
    f64v cosine = 1.0 + y * b;
    u64v swap = (u64v)((i64v)(turn << 1) >> 63);
    f64v first = (f64v)((swap & (u64v)sine) | (~swap & (u64v)cosine));
    f64v second = (f64v)((swap & (u64v)cosine) | (~swap & (u64v)sine));
    r = (f64v)((u64v)r ^ (turn & splat_u64(1ull << 63)));
    out[0] = r * first;
    out[1] = r * second;
}

#endif
