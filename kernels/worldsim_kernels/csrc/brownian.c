/* Counter-based normal numbers: Philox4x32-10 and Box-Muller (solve/brownian.py has the equations). Products
   and sums are not contracted, so that every backend rounds alike. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include "normals.h"

#define CHUNK 256 /* components of rows that one work item draws, a multiple of every number of lanes */

typedef float f32h __attribute__((vector_size(REGISTER / 2), aligned(4)));

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
