/* Counter-based normal numbers: Philox4x32-10 and Box-Muller (solve/brownian.py has the equations). Products
   and sums are not contracted, so that every backend rounds alike. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include "vector.h"
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define LOW 0xFFFFFFFFull
#define CHUNK 256 /* components of rows that one work item draws, a multiple of every number of lanes */

typedef uint64_t u64v __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef float f32h __attribute__((vector_size(REGISTER / 2), aligned(4)));

static inline u64v splat_u64(uint64_t x) { return x + (u64v){0}; }
static inline f64v splat_f64(double x) { return x - (f64v){0}; }

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

static inline f64v root(f64v x) {
#if defined(__AVX512F__)
    return (f64v)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX__)
    return (f64v)_mm256_sqrt_pd((__m256d)x);
#else
    for (int i = 0; i < LANES_f64; i++) x[i] = sqrt(x[i]);
    return x;
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
    f64v r = root(log * -4.0 - __builtin_convertvector(e, f64v) * 1.3862943611198906);
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

typedef struct {
    int64_t rows, components, first, count;
    uint64_t seed, node;
    const int64_t *ids;
    const double *scale;
    void *out;
    int single;
} grid_t;

static inline void store(const grid_t *g, int64_t at, f64v v, int64_t n) {
    if (g->single) {
        f32h rounded = __builtin_convertvector(v, f32h);
        memcpy((float *)g->out + at, &rounded, (size_t)n * sizeof(float));
    } else if (n == LANES_f64) *(f64vu *)((double *)g->out + at) = v;
    else memcpy((double *)g->out + at, &v, (size_t)n * sizeof(double));
}

static void draw_chunk(void *pointer, int64_t chunk) {
    const grid_t *g = pointer;
    const int64_t width = g->rows * g->components, from = chunk * CHUNK;
    const int64_t lanes = width - from < CHUNK ? width - from : CHUNK;
    u64v low[CHUNK / LANES_f64], high[CHUNK / LANES_f64];
    for (int64_t i = 0; i < CHUNK; i++) {
        const int64_t at = from + (i < lanes ? i : 0), row = at / g->components;
        const uint64_t id = (uint64_t)g->ids[row];
        low[i / LANES_f64][i % LANES_f64] = id & LOW;
        high[i / LANES_f64][i % LANES_f64] = (id >> 32 << 20) | (uint64_t)(at % g->components);
    }
    const int64_t end = g->first + g->count;
    for (int64_t pair = g->first >> 1; 2 * pair < end; pair++) {
        const int64_t step = 2 * pair - g->first;
        for (int64_t i = 0; i < lanes; i += LANES_f64) {
            const int64_t n = lanes - i < LANES_f64 ? lanes - i : LANES_f64;
            u64v words[4] = {splat_u64((uint64_t)pair), low[i / LANES_f64], splat_u64(g->node), high[i / LANES_f64]};
            f64v drawn[2];
            philox(words, g->seed);
            normals(words, drawn);
            for (int j = 0; j < 2; j++) {
                const int64_t at = step + j;
                if (at < 0 || at >= g->count) continue;
                if (g->scale) drawn[j] *= splat_f64(g->scale[at]);
                store(g, at * width + from + i, drawn[j], n);
            }
        }
    }
}

/* out[count, rows, components] = scale[count] times the normal numbers of the steps from `first` on. */
void grid_normals(int64_t rows, int64_t components, int64_t first, int64_t count, int64_t seed, int64_t node,
                  const int64_t *ids, const double *scale, void *out, int single, int threads) {
    grid_t grid = {rows, components, first, count, (uint64_t)seed, (uint64_t)node, ids, scale, out, single};
    run_team((rows * components + CHUNK - 1) / CHUNK, threads, draw_chunk, &grid);
}

typedef struct {
    int64_t n;
    uint64_t seed;
    const int64_t *counter;
    double *out;
} list_t;

static void draw_list(void *pointer, int64_t chunk) {
    const list_t *l = pointer;
    const int64_t from = chunk * CHUNK, end = from + CHUNK < l->n ? from + CHUNK : l->n;
    for (int64_t i = from; i < end; i += LANES_f64) {
        const int64_t n = end - i < LANES_f64 ? end - i : LANES_f64;
        u64v words[4] = {{0}};
        f64v drawn[2];
        for (int j = 0; j < 4; j++) memcpy(&words[j], l->counter + j * l->n + i, (size_t)n * 8);
        philox(words, l->seed);
        normals(words, drawn);
        for (int j = 0; j < 2; j++) memcpy(l->out + j * l->n + i, &drawn[j], (size_t)n * 8);
    }
}

/* out[2, n]: the two normal numbers of each of the counters counter[4, n]. */
void list_normals(int64_t n, int64_t seed, const int64_t *counter, double *out, int threads) {
    list_t list = {n, (uint64_t)seed, counter, out};
    run_team((n + CHUNK - 1) / CHUNK, threads, draw_list, &list);
}
