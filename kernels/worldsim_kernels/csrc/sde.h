/* Steps of constant length of a stochastic equation. A generated source defines

     SINGLE      1 for states of floats, 0 of doubles
     WIDTH       numbers that a step takes: state, carry, increments, areas
     MOVED       of them, state and carry, which it gives
     STATE       of them, the state
     MOTIONS     increments, and as many areas if AREA
     ARGUMENTS   numbers of a row's arguments; those of slots LATER and LENGTH (-1 for none) are the end and
                 the length of the step

   includes this file, and then defines field, the step. A lane holds a row. The numbers of steps 2k and 2k + 1
   share a counter (solve/philox.py), so that they are drawn together. Every operation and its order are those
   of the loop in torch; compile without contraction of a * b + c. */
#include "lanes.h"
#include "normals.h"

/* y [WIDTH] at t to made [WIDTH]; what is not MOVED in it does not matter. */
static void field(real_v t, const real_v *restrict y, const real_v *restrict arguments,
                  const real *restrict data, real_v *restrict made);

typedef struct {
    int64_t rows, first, count, kept, own_times, threads;
    uint64_t seed;
    const int64_t *ids;                /* [row] */
    const double *t;                   /* [row if own_times else 1, count + 1] */
    const double *scale, *area_scale;  /* [row if own_times else 1, count]: of a normal number */
    const real *drawn, *areas;         /* [count, row, MOTIONS], or NULL to draw them here */
    const int64_t *keep;               /* [kept] ascending: numbers of steps from 1 on after which to store */
    const real *arguments, *data;      /* [row, ARGUMENTS] */
    real *y;                           /* [row, MOVED], in and out */
    real *states;                      /* [kept, row, STATE] */
} call_t;

/* What differs from lane to lane. */
typedef struct {
    int64_t row[LANES];
    u64v low, high;
} lanes_t;

INLINE f64v of_rows(const call_t *call, const lanes_t *l, const double *of, int64_t width, int64_t at) {
    if (!call->own_times) return splat_f64(of[at]);
    f64v found;
    for (int i = 0; i < LANES; i++) found[i] = of[l->row[i] * width + at];
    return found;
}

/* The numbers of steps 2 pair and 2 pair + 1. */
INLINE void draw_pair(const call_t *call, const lanes_t *l, uint64_t pair, uint64_t node, f64v (*pairs)[MOTIONS]) {
    for (int j = 0; j < MOTIONS; j++) {
        u64v words[4] = {splat_u64(pair), l->low, splat_u64(node), l->high | splat_u64((uint64_t)j)};
        f64v two[2];
        philox(words, call->seed);
        normals(words, two);
        pairs[0][j] = two[0], pairs[1][j] = two[1];
    }
}

INLINE void load(const call_t *call, const lanes_t *l, const real *of, int64_t step, real_v *to) {
    for (int j = 0; j < MOTIONS; j++)
        for (int i = 0; i < LANES; i++) to[j][i] = of[(step * call->rows + l->row[i]) * MOTIONS + j];
}

static void walk(void *pointer, int64_t block) {
    const call_t *call = pointer;
    lanes_t l;
    real_v at[WIDTH], made[WIDTH], arguments[ARGUMENTS + 1];
    f64v pairs[2][MOTIONS];
#if AREA
    f64v others[2][MOTIONS];
#endif
    const int64_t left = call->rows - block * LANES;
    const int lanes = left < LANES ? (int)left : LANES;
    for (int i = 0; i < LANES; i++) {
        const int64_t row = l.row[i] = block * LANES + (i < lanes ? i : 0);
        const uint64_t id = (uint64_t)call->ids[row];
        l.low[i] = id & LOW, l.high[i] = id >> 32 << 20;
        for (int j = 0; j < MOVED; j++) at[j][i] = call->y[row * MOVED + j];
        for (int j = 0; j < ARGUMENTS; j++) arguments[j][i] = call->arguments[row * ARGUMENTS + j];
    }
    int64_t stored = 0;
    for (int64_t step = 0; step < call->count; step++) {
        const int64_t number = call->first + step;
        if (call->drawn) {
            load(call, &l, call->drawn, step, at + MOVED);
#if AREA
            load(call, &l, call->areas, step, at + MOVED + MOTIONS);
#endif
        } else {
            if (step == 0 || number % 2 == 0) {
                draw_pair(call, &l, (uint64_t)number >> 1, 0, pairs);
#if AREA
                draw_pair(call, &l, (uint64_t)number >> 1, 1ull << 31, others);
#endif
            }
            const f64v scale = of_rows(call, &l, call->scale, call->count, step);
            for (int j = 0; j < MOTIONS; j++) at[MOVED + j] = NARROW(pairs[number % 2][j] * scale);
#if AREA
            const f64v area_scale = of_rows(call, &l, call->area_scale, call->count, step);
            for (int j = 0; j < MOTIONS; j++) at[MOVED + MOTIONS + j] = NARROW(others[number % 2][j] * area_scale);
#endif
        }
        const f64v t = of_rows(call, &l, call->t, call->count + 1, step);
        const f64v later = of_rows(call, &l, call->t, call->count + 1, step + 1);
        if (LATER >= 0) arguments[LATER < 0 ? 0 : LATER] = NARROW(later);
        if (LENGTH >= 0) arguments[LENGTH < 0 ? 0 : LENGTH] = NARROW(later - t);
        field(NARROW(t), at, arguments, call->data, made);
        for (int j = 0; j < MOVED; j++) at[j] = made[j];
        if (stored < call->kept && call->keep[stored] == step + 1) {
            real *to = call->states + stored++ * call->rows * STATE;
            for (int i = 0; i < lanes; i++)
                for (int j = 0; j < STATE; j++) to[l.row[i] * STATE + j] = at[j][i];
        }
    }
    for (int i = 0; i < lanes; i++)
        for (int j = 0; j < MOVED; j++) call->y[l.row[i] * MOVED + j] = at[j][i];
}

/* Takes `count` steps with every row. */
void take(call_t *call) { run_team((call->rows + LANES - 1) / LANES, (int)call->threads, walk, call); }

/* made [row, WIDTH] of the step at t [row], y [row, WIDTH]. */
void evaluate(int64_t rows, const double *t, const real *y, const real *arguments, const real *data, real *made) {
    for (int64_t first = 0; first < rows; first += LANES) {
        f64v time = {0};
        real_v at[WIDTH], given[ARGUMENTS + 1], found[WIDTH];
        const int count = rows - first < LANES ? (int)(rows - first) : LANES;
        for (int i = 0; i < LANES; i++) {
            const int64_t row = first + (i < count ? i : 0);
            time[i] = t[row];
            for (int j = 0; j < WIDTH; j++) at[j][i] = y[row * WIDTH + j];
            for (int j = 0; j < ARGUMENTS; j++) given[j][i] = arguments[row * ARGUMENTS + j];
        }
        field(NARROW(time), at, given, data, found);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < WIDTH; j++) made[(first + i) * WIDTH + j] = found[j][i];
    }
}
