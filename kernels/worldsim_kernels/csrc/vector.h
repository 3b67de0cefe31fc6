/* Vectors as wide as one register by the compiler's own vector extension, a thread team, and exp. Included by
   every kernel; it defines nothing global. */
#ifndef WORLDSIM_VECTOR_H
#define WORLDSIM_VECTOR_H

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

/* Bytes of a register. A wider vector is legal, but gcc then keeps it in memory: sixteen floats made kernels
   compiled for AVX2 3 to 16 times slower (gcc 12). */
#if defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
enum { LANES_f32 = REGISTER / 4, LANES_f64 = REGISTER / 8 };

typedef float f32v __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef double f64v __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef int32_t i32v __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef int64_t i64v __attribute__((vector_size(REGISTER), aligned(REGISTER)));
/* The same at any address. */
typedef float f32vu __attribute__((vector_size(REGISTER), aligned(4)));
typedef double f64vu __attribute__((vector_size(REGISTER), aligned(8)));

static inline f32v splat_f32(float x) { return x - (f32v){0}; }
static inline f64v splat_f64(double x) { return x - (f64v){0}; }

/* Square roots, correctly rounded. */
static inline f64v root_f64(f64v x) {
#if defined(__AVX512F__)
    return (f64v)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX__)
    return (f64v)_mm256_sqrt_pd((__m256d)x);
#else
    for (int i = 0; i < LANES_f64; i++) x[i] = sqrt(x[i]);
    return x;
#endif
}

static inline f32v either_f32(i32v mask, f32v yes, f32v no) {
    return (f32v)((mask & (i32v)yes) | (~mask & (i32v)no));
}

/* The sum of a vector's lanes: halves are added until one lane is left. */
static inline float sum_f32(f32v v) {
    float s[LANES_f32];
    memcpy(s, &v, sizeof s);
    for (int width = LANES_f32 / 2; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}

static inline double sum_f64(f64v v) {
    double s[LANES_f64];
    memcpy(s, &v, sizeof s);
    for (int width = LANES_f64 / 2; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}

/* Half of the lanes are sums of two lanes of x, half of two of y: neighbours at this distance. */
static inline __attribute__((always_inline)) f32v fold_f32(f32v x, f32v y, const int distance) {
#ifdef __clang__
    f32v low, high;
    for (int i = 0; i < LANES_f32; i++) {
        int from = i & ~distance;
        low[i] = i & distance ? y[from] : x[from];
        high[i] = i & distance ? y[from + distance] : x[from + distance];
    }
    return low + high;
#else
    i32v low, high;
    for (int i = 0; i < LANES_f32; i++)
        low[i] = (i & ~distance) + (i & distance ? LANES_f32 : 0), high[i] = low[i] + distance;
    return __builtin_shuffle(x, y, low) + __builtin_shuffle(x, y, high);
#endif
}

/* Lane i of the result is the sum of the lanes of x[i], for as many vectors as a vector has lanes. */
static inline __attribute__((always_inline)) f32v sums_f32(const f32v *x) {
    f32v y[LANES_f32];
    for (int i = 0; i < LANES_f32; i++) y[i] = x[i];
    /* One loop for each distance, because gcc keeps a shuffle whose pattern it does not know in memory. */
    if (LANES_f32 > 8)
        for (int i = 0; i < 8; i++) y[i] = fold_f32(y[i], y[(i + 8) % LANES_f32], 8);
    if (LANES_f32 > 4)
        for (int i = 0; i < 4; i++) y[i] = fold_f32(y[i], y[(i + 4) % LANES_f32], 4);
    for (int i = 0; i < 2; i++) y[i] = fold_f32(y[i], y[i + 2], 2);
    return fold_f32(y[0], y[1], 1);
}

/* e^x for x <= 88, zero below -104 and for -infinity, NaN for NaN; within 2 units in the last place. By
   x = n ln 2 + r and a polynomial of degree 6 on |r| <= ln(2)/2 (Cephes, Moshier 1992). */
static inline f32v exp_f32(f32v x) {
    i32v tiny = x < splat_f32(-104.0f);
    f32v clamped = either_f32(tiny, splat_f32(-104.0f), x);
    f32v shifted = clamped * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number */
    f32v n = shifted - 12582912.0f;
    f32v r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32v p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    f32v y = p * (r * r) + r + 1.0f;
    /* 2^n in two factors, so that results below the smallest normal number are right too. */
    i32v whole = (i32v)shifted - (i32v)splat_f32(12582912.0f);
    i32v half = whole >> 1;
    f32v a = (f32v)((half + 127) << 23), b = (f32v)((whole - half + 127) << 23);
    f32v result = y * a * b;
    return (f32v)(~tiny & (i32v)result);
}

/* Calls task(context, item) for every item, on so many threads, each taking the next free one. Which thread
   takes an item must not matter for its bits. */
typedef struct {
    void (*task)(void *, int64_t);
    void *context;
    int64_t items;
    int64_t next;
} team_t;

static void *team_member(void *pointer) {
    team_t *team = pointer;
    for (;;) {
        int64_t item = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED);
        if (item >= team->items) return NULL;
        team->task(team->context, item);
    }
}

static inline void run_team(int64_t items, int threads, void (*task)(void *, int64_t), void *context) {
    team_t team = {task, context, items, 0};
    if (threads > items) threads = (int)items;
    if (threads > 64) threads = 64;
    pthread_t members[64];
    int started = 0;
    while (started < threads - 1 && pthread_create(&members[started], NULL, team_member, &team) == 0) started++;
    team_member(&team);
    for (int i = 0; i < started; i++) pthread_join(members[i], NULL);
}

/* Memory for a thread's own use, aligned for vectors; NULL when there is none. */
static inline void *aligned_memory(size_t bytes) {
    void *found = NULL;
    return posix_memalign(&found, 64, bytes ? (bytes + 63) / 64 * 64 : 64) ? NULL : found;
}

#endif
