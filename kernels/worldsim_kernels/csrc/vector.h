/* Vectors of sixteen floats or eight doubles by the compiler's own vector extension (any width of register:
   the compiler splits them), a thread team, and exp. Included by every kernel; it defines nothing global. */
#ifndef WORLDSIM_VECTOR_H
#define WORLDSIM_VECTOR_H

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float f32x16 __attribute__((vector_size(64), aligned(64)));
typedef double f64x8 __attribute__((vector_size(64), aligned(64)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(64)));
typedef float f32x16u __attribute__((vector_size(64), aligned(4)));
typedef double f64x8u __attribute__((vector_size(64), aligned(8)));

/* e^x for x <= 88, zero below -104 and for -infinity, NaN for NaN; within 2 units in the last place. By
   x = n ln 2 + r and a polynomial of degree 6 on |r| <= ln(2)/2 (Cephes, Moshier 1992). */
static inline f32x16 exp_f32x16(f32x16 x) {
    const f32x16 one = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    i32x16 tiny = x < -104.0f * one;
    f32x16 clamped = (f32x16)((tiny & (i32x16)(-104.0f * one)) | (~tiny & (i32x16)x));
    f32x16 shifted = clamped * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number */
    f32x16 n = shifted - 12582912.0f;
    f32x16 r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32x16 p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    f32x16 y = p * (r * r) + r + 1.0f;
    /* 2^n in two factors, so that results below the smallest normal number are right too. */
    i32x16 whole = (i32x16)shifted - (i32x16)(12582912.0f * one);
    i32x16 half = whole >> 1;
    f32x16 a = (f32x16)((half + 127) << 23), b = (f32x16)((whole - half + 127) << 23);
    f32x16 result = y * a * b;
    return (f32x16)(~tiny & (i32x16)result);
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
