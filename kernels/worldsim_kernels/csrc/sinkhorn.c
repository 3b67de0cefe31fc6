/* Entropic optimal transport between two clouds of points, cost |x - y|^2.

   Iterations are in float32 on a stored kernel K_ij = b_j exp((f_i + g_j - C_ij) / epsilon), whose rows sum to
   one when it is built; each pass over it does both half-steps, so that K is read once an iteration. What is
   reported is computed in float64 from the points themselves.

   Rows are padded to a multiple of eight (a = 0) and columns to one of sixteen (scores of -infinity). Points y
   come in panels [columns / 16][d][16]. Every column sum is taken over chunks of CHUNK rows, then over the
   chunks in order, so that the bits do not depend on the number of threads. */
#include "vector.h"

#define CHUNK 256
#define PANEL 16


static inline f64v either_f64(i64v mask, f64v yes, f64v no) {
    return (f64v)((mask & (i64v)yes) | (~mask & (i64v)no));
}

/* e^x for x <= 0, zero below -700; within 2 units in the last place. Taylor's polynomial of degree 12 on
   |r| <= ln(2)/2, whose remainder is below 2e-16. */
static inline f64v exp_f64(f64v x) {
    i64v tiny = x < splat_f64(-700.0);
    f64v clamped = either_f64(tiny, splat_f64(-700.0), x);
    f64v shifted = clamped * 1.4426950408889634074 + 6755399441055744.0; /* rounds to a whole number */
    f64v n = shifted - 6755399441055744.0;
    f64v r = clamped - n * 6.93147180369123816490e-01;
    r = r - n * 1.90821492927058770002e-10;
    f64v p = r * (1.0 / 479001600) + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    f64v y = p * (r * r) + r + 1.0;
    i64v whole = (i64v)shifted - (i64v)splat_f64(6755399441055744.0);
    f64v scaled = y * (f64v)((whole + 1023) << 52);
    return (f64v)(~tiny & (i64v)scaled);
}

static inline double largest_f64(f64v v) {
    double m = v[0];
    for (int k = 1; k < LANES_f64; k++) m = v[k] > m ? v[k] : m;
    return m;
}

static inline f64v greater_f64(f64v a, f64v b) { return either_f64(a > b, a, b); }
static inline f32v greater_f32(f32v a, f32v b) { return either_f32(a > b, a, b); }

/* out [4, columns] = |x_r - y_j|^2 for x [4, d] and y in panels. */
static void distances(const double *x, const double *y, int64_t d, int64_t columns, double *out) {
    enum { PAIR = 2 * LANES_f64 }; /* eight sums in registers */
    for (int64_t j = 0; j < columns; j += PAIR) {
        const double *panel = y + j / PANEL * PANEL * d + j % PANEL;
        f64v sum[4][2] = {{{0}}};
        for (int64_t k = 0; k < d; k++) {
            f64v left = *(const f64v *)(panel + k * PANEL), right = *(const f64v *)(panel + k * PANEL + LANES_f64);
            for (int r = 0; r < 4; r++) {
                f64v p = left - x[r * d + k], q = right - x[r * d + k];
                sum[r][0] += p * p;
                sum[r][1] += q * q;
            }
        }
        for (int r = 0; r < 4; r++) {
            *(f64v *)(out + r * columns + j) = sum[r][0];
            *(f64v *)(out + r * columns + j + LANES_f64) = sum[r][1];
        }
    }
}

/* ---- what is certified, in float64 ---- */

typedef struct {
    int64_t rows, columns, m, d;
    const double *x, *y, *a, *score; /* score_j = g_j / epsilon + ln b_j */
    double rate;                     /* 1 / epsilon */
    double *logs;                    /* [rows], minus f / epsilon */
    double relaxation;               /* of the step of logs; 1 for the row sums themselves */
    double *partial;                 /* [chunks, columns] */
    const double *kept;              /* [columns], the share of each column that is kept; NULL to build */
    double *row_mass, *row_cost;     /* [rows] */
    float *cost;                     /* [rows, columns] */
    int failed;
} exact_t;

static inline int64_t last_row(int64_t rows, int64_t item) {
    return rows < (item + 1) * CHUNK ? rows : (item + 1) * CHUNK;
}

static void cost_task(void *context, int64_t item) {
    exact_t *e = context;
    double *tile = aligned_memory(sizeof(double) * 4 * e->columns);
    if (!tile) {
        e->failed = 1;
        return;
    }
    for (int64_t i = item * CHUNK; i < last_row(e->rows, item); i += 4) {
        distances(e->x + i * e->d, e->y, e->d, e->columns, tile);
        for (int r = 0; r < 4; r++) {
            float *to = e->cost + (i + r) * e->columns;
            for (int64_t j = 0; j < e->columns; j++) to[j] = j < e->m ? (float)tile[r * e->columns + j] : INFINITY;
        }
    }
    free(tile);
}

static void row_sums(exact_t *e, double *line, int64_t i, double *columns_to) {
    f64v top = *(const f64v *)e->score - e->rate * *(f64v *)line;
    for (int64_t j = 0; j < e->columns; j += LANES_f64) {
        f64v t = *(const f64v *)(e->score + j) - e->rate * *(f64v *)(line + j);
        *(f64v *)(line + j) = t;
        top = greater_f64(t, top);
    }
    double most = largest_f64(top);
    f64v total = {0};
    for (int64_t j = 0; j < e->columns; j += LANES_f64) {
        f64v v = exp_f64(*(f64v *)(line + j) - most);
        *(f64v *)(line + j) = v;
        total += v;
    }
    double log_sum = most + log(sum_f64(total));
    if (e->relaxation != 1.0) {
        double change = log_sum - e->logs[i];
        if (change > -0.16 && change < 50) log_sum = e->logs[i] + log1p(e->relaxation * expm1(change));
    }
    e->logs[i] = log_sum;
    double weight = e->a[i] * exp(most - log_sum);
    for (int64_t j = 0; j < e->columns; j += LANES_f64) *(f64v *)(columns_to + j) += weight * *(f64v *)(line + j);
}

static void row_kept(const exact_t *e, const double *line, int64_t i) {
    f64v mass = {0}, cost = {0};
    for (int64_t j = 0; j < e->columns; j += LANES_f64) {
        f64v c = *(const f64v *)(line + j);
        f64v p = exp_f64(*(const f64v *)(e->score + j) - e->rate * c - e->logs[i]) * *(const f64v *)(e->kept + j);
        mass += p;
        cost += p * c;
    }
    e->row_mass[i] = e->a[i] * sum_f64(mass);
    e->row_cost[i] = e->a[i] * sum_f64(cost);
}

static void exact_task(void *context, int64_t item) {
    exact_t *e = context;
    double *tile = aligned_memory(sizeof(double) * 4 * e->columns);
    if (!tile) {
        e->failed = 1;
        return;
    }
    double *sums = e->partial + item * e->columns;
    if (!e->kept) memset(sums, 0, sizeof(double) * e->columns);
    for (int64_t i = item * CHUNK; i < last_row(e->rows, item); i += 4) {
        distances(e->x + i * e->d, e->y, e->d, e->columns, tile);
        for (int r = 0; r < 4; r++) {
            double *line = tile + r * e->columns;
            if (e->kept)
                row_kept(e, line, i + r);
            else
                row_sums(e, line, i + r, sums);
        }
    }
    free(tile);
}

static int64_t chunks_of(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }

/* cost [rows, columns] = |x_i - y_j|^2, infinite in the columns from m on. Nonzero without memory. */
int sinkhorn_cost(int64_t rows, int64_t columns, int64_t m, int64_t d, const double *x, const double *y, float *cost,
                  int threads) {
    exact_t e = {.rows = rows, .columns = columns, .m = m, .d = d, .x = x, .y = y, .cost = cost};
    run_team(chunks_of(rows), threads, cost_task, &e);
    return e.failed;
}

/* logs_i = ln sum_j exp(score_j - rate C_ij), or a relaxed step there from the logs given, and
   sums_j = sum_i a_i exp(score_j - rate C_ij - logs_i). */
int sinkhorn_half(int64_t rows, int64_t columns, int64_t d, const double *x, const double *y, const double *a,
                  const double *score, double rate, double relaxation, double *logs, double *sums, int threads) {
    int64_t chunks = chunks_of(rows);
    exact_t e = {.rows = rows, .columns = columns, .d = d, .x = x, .y = y, .a = a, .score = score, .rate = rate};
    e.logs = logs, e.relaxation = relaxation;
    e.partial = aligned_memory(sizeof(double) * chunks * columns);
    if (!e.partial) return 1;
    run_team(chunks, threads, exact_task, &e);
    memset(sums, 0, sizeof(double) * columns);
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t j = 0; j < columns; j++) sums[j] += e.partial[c * columns + j];
    free(e.partial);
    return e.failed;
}

/* For P_ij = a_i exp(score_j - rate C_ij - logs_i) kept_j: its row sums, and those of P C. */
int sinkhorn_kept(int64_t rows, int64_t columns, int64_t d, const double *x, const double *y, const double *a,
                  const double *score, double rate, double *logs, const double *kept, double *row_mass,
                  double *row_cost, int threads) {
    exact_t e = {.rows = rows, .columns = columns, .d = d, .x = x, .y = y, .a = a, .score = score, .rate = rate};
    e.logs = logs, e.kept = kept, e.row_mass = row_mass, e.row_cost = row_cost;
    run_team(chunks_of(rows), threads, exact_task, &e);
    return e.failed;
}

/* ---- iterations, in float32 ---- */

typedef struct {
    int64_t rows, columns;
    const float *cost, *a;
    float *kernel, *score, *u, *v, *partial;
    double *logs;
    float rate, relaxation;
} sweep_t;

/* Exponents below this are zero: it keeps subnormal numbers, which are slow, out of the kernel. */
#define LEAST -80.0f

static float build_row(const sweep_t *s, int64_t i) {
    const float *cost = s->cost + i * s->columns;
    float *line = s->kernel + i * s->columns;
    f32v top = splat_f32(-INFINITY), total = {0};
    for (int64_t j = 0; j < s->columns; j += LANES_f32) {
        f32v t = *(f32v *)(s->score + j) - s->rate * *(const f32v *)(cost + j);
        *(f32v *)(line + j) = t;
        top = greater_f32(t, top);
    }
    float most = top[0];
    for (int k = 1; k < LANES_f32; k++) most = top[k] > most ? top[k] : most;
    for (int64_t j = 0; j < s->columns; j += LANES_f32) {
        f32v t = *(f32v *)(line + j) - most;
        i32v seen = t > splat_f32(LEAST);
        f32v e = (f32v)(seen & (i32v)exp_f32(t));
        *(f32v *)(line + j) = e;
        total += e;
    }
    float sum = sum_f32(total);
    s->logs[i] = (double)most + log((double)sum);
    return 1.0f / sum;
}

static void build_task(void *context, int64_t item) {
    const sweep_t *s = context;
    float *sums = s->partial + item * s->columns;
    memset(sums, 0, sizeof(float) * s->columns);
    for (int64_t i = item * CHUNK; i < last_row(s->rows, item); i += 8) {
        float scale[8];
        for (int r = 0; r < 8; r++) scale[r] = build_row(s, i + r);
        for (int64_t j = 0; j < s->columns; j += LANES_f32) {
            f32v sum = *(f32v *)(sums + j);
            for (int r = 0; r < 8; r++) {
                f32v *at = (f32v *)(s->kernel + (i + r) * s->columns + j);
                f32v k = *at * scale[r];
                *at = k;
                sum += s->a[i + r] * k;
            }
            *(f32v *)(sums + j) = sum;
        }
    }
}

/* What a scaling becomes when the marginal it gives is ``ratio`` times what it should be. To first order it is
   divided by ratio^relaxation; where that could lower the dual value, by the ratio itself. */
static inline float relaxed(float scaling, float ratio, float relaxation) {
    if (ratio > 0.85f) return scaling / (1.0f + relaxation * (ratio - 1.0f));
    return scaling / (ratio > 1e-20f ? ratio : 1e-20f);
}

static void sweep_task(void *context, int64_t item) {
    const sweep_t *s = context;
    float *sums = s->partial + item * s->columns;
    memset(sums, 0, sizeof(float) * s->columns);
    for (int64_t i = item * CHUNK; i < last_row(s->rows, item); i += 8) {
        const float *k = s->kernel + i * s->columns;
        f32v dot[8] = {{0}};
        for (int64_t j = 0; j < s->columns; j += LANES_f32) {
            f32v v = *(f32v *)(s->v + j);
            for (int r = 0; r < 8; r++) dot[r] += *(const f32v *)(k + r * s->columns + j) * v;
        }
        float weight[8];
        for (int r = 0; r < 8; r++) {
            s->u[i + r] = relaxed(s->u[i + r], s->u[i + r] * sum_f32(dot[r]), s->relaxation);
            weight[r] = s->a[i + r] * s->u[i + r];
        }
        for (int64_t j = 0; j < s->columns; j += LANES_f32) {
            f32v sum = *(f32v *)(sums + j);
            for (int r = 0; r < 8; r++) sum += weight[r] * *(const f32v *)(k + r * s->columns + j);
            *(f32v *)(sums + j) = sum;
        }
    }
}

static float column_sum(const sweep_t *s, int64_t j) {
    float sum = 0;
    for (int64_t c = 0; c < chunks_of(s->rows); c++) sum += s->partial[c * s->columns + j];
    return sum;
}

/* A column that no row reaches: its score is set in the log domain, so that it gets its mass. */
static void lift_column(const sweep_t *s, int64_t j) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < s->rows; i++) {
        double t = -s->logs[i] - (double)s->rate * s->cost[i * s->columns + j];
        if (s->a[i] > 0 && t > most) most = t;
    }
    for (int64_t i = 0; i < s->rows; i++)
        sum += s->a[i] * exp(-s->logs[i] - (double)s->rate * s->cost[i * s->columns + j] - most);
    s->score[j] = (float)(log((double)s->v[j]) - most - log(sum)); /* here v_j is the mass it must have */
    for (int64_t i = 0; i < s->rows; i++) {
        float t = (float)(s->score[j] - s->logs[i] - (double)s->rate * s->cost[i * s->columns + j]);
        s->kernel[i * s->columns + j] = t > LEAST ? expf(t) : 0.0f;
    }
    s->v[j] = 1.0f;
}

/* One log-domain half-step on either side that builds the kernel, then ``count`` relaxed iterations on it.

   a [rows], b [columns]; score [columns] = g / epsilon + ln b, changed where a column had no mass.
   On return the potentials are f = epsilon (ln u - logs) and g = epsilon (score - ln b + ln v), and errors
   [count + 1] holds sum_j |column sum - b_j| before each column step. Stops early when a scaling leaves
   [1e-12, 1e12]. Returns the number of iterations done, or -1 without memory. */
int64_t sinkhorn_sweeps(int64_t rows, int64_t columns, int64_t m, const float *cost, float *kernel, const float *a,
                        const float *b, float *score, float rate, float relaxation, int64_t count, double *logs,
                        float *u, float *v, double *errors, int threads) {
    int64_t chunks = chunks_of(rows), done = 0;
    sweep_t s = {rows, columns, cost, a, kernel, score, u, v, NULL, logs, rate, relaxation};
    s.partial = aligned_memory(sizeof(float) * chunks * columns);
    if (!s.partial) return -1;
    for (int64_t i = 0; i < rows; i++) u[i] = 1.0f;
    for (int64_t j = 0; j < columns; j++) v[j] = 0.0f;
    run_team(chunks, threads, build_task, &s);
    errors[0] = 0;
    for (int64_t j = 0; j < m; j++) {
        float sum = column_sum(&s, j);
        errors[0] += fabs((double)sum - (double)b[j]);
        v[j] = b[j];
        if (sum < 1e-12f * b[j])
            lift_column(&s, j);
        else
            v[j] = b[j] / sum;
    }
    for (int moderate = 1; done < count && moderate;) {
        run_team(chunks, threads, sweep_task, &s);
        errors[++done] = 0;
        for (int64_t j = 0; j < m; j++) {
            float ratio = v[j] * column_sum(&s, j) / b[j];
            errors[done] += (double)b[j] * fabs((double)ratio - 1.0);
            v[j] = relaxed(v[j], ratio, relaxation);
            if (!(v[j] > 1e-12f && v[j] < 1e12f)) moderate = 0;
        }
        for (int64_t i = 0; i < rows; i++)
            if (!(u[i] > 1e-12f && u[i] < 1e12f)) moderate = 0;
    }
    free(s.partial);
    return done;
}
