/* The row operations for one type: REAL, its vector VEC (unaligned VECU), and NAME(f) to name functions.
   Rows have unit stride inside and any stride between; sums over rows go through fixed blocks, so that their
   order does not depend on the threads. */

static inline VEC NAME(load)(const REAL *p, int64_t n) {
    if (n >= NAME(LANES)) return *(const VECU *)p;
    VEC found = {0};
    memcpy(&found, p, (size_t)n * sizeof(REAL));
    return found;
}

static inline void NAME(store)(REAL *p, VEC v, int64_t n) {
    if (n >= NAME(LANES)) *(VECU *)p = v;
    else memcpy(p, &v, (size_t)n * sizeof(REAL));
}

/* y = (s - mean) rsqrt(mean (s - mean)^2 + eps) m + c with s = x + residual, m = weight (1 + scale), c = shift;
   the mean only when centred. scale and shift have one row for each group of `group` rows. */
typedef struct {
    int64_t rows, width, group, blocks;
    const REAL *x, *residual, *weight, *scale, *shift, *dy, *dsum;
    int64_t step_x, step_residual, step_dy, step_dsum;
    REAL *y, *sum, *dx, *along, *across;
    double eps;
    int centred, failed;
} NAME(norm_t);

static void NAME(effective)(const NAME(norm_t) *c, int64_t group, REAL *m, REAL *add) {
    for (int64_t j = 0; j < c->width; j++) {
        m[j] = c->weight ? c->weight[j] : 1;
        if (c->scale) m[j] *= 1 + c->scale[group * c->width + j];
        add[j] = c->shift ? c->shift[group * c->width + j] : 0;
    }
}

/* s -> s - mean when centred; returns the reciprocal of its root mean square. */
static REAL NAME(centre)(const NAME(norm_t) *c, const REAL *x, const REAL *residual, REAL *s) {
    const int64_t d = c->width;
    VEC sum = {0}, squares = {0};
    for (int64_t j = 0; j < d; j += NAME(LANES)) {
        VEC v = NAME(load)(x + j, d - j);
        if (residual) v += NAME(load)(residual + j, d - j);
        NAME(store)(s + j, v, d - j);
        sum += v;
        squares += v * v;
    }
    if (c->centred) {
        const REAL mean = NAME(sum)(sum) / d;
        squares = (VEC){0};
        for (int64_t j = 0; j < d; j++) s[j] -= mean;
        for (int64_t j = 0; j < d; j += NAME(LANES)) {
            VEC v = NAME(load)(s + j, d - j);
            squares += v * v;
        }
    }
    return (REAL)(1 / sqrt((double)(NAME(sum)(squares) / d) + c->eps));
}

static void NAME(norm_forward_item)(void *context, int64_t item) {
    NAME(norm_t) *c = context;
    const int64_t d = c->width, group = item / c->blocks, first = item % c->blocks * BLOCK;
    const int64_t last = first + BLOCK < c->group ? first + BLOCK : c->group;
    REAL *s = aligned_memory(3 * d * sizeof(REAL)), *m = s + d, *add = m + d;
    if (!s) {
        c->failed = 1;
        return;
    }
    NAME(effective)(c, group, m, add);
    for (int64_t i = group * c->group + first; i < group * c->group + last; i++) {
        REAL *y = c->y + i * d, *to = c->sum ? c->sum + i * d : s;
        const REAL r = NAME(centre)(c, c->x + i * c->step_x,
                                    c->residual ? c->residual + i * c->step_residual : NULL, to);
        for (int64_t j = 0; j < d; j++) y[j] = to[j] * r * m[j] + add[j];
    }
    free(s);
}

/* along: sums of dy n over the rows of a block, n the normalised row; across: sums of dy. */
static void NAME(norm_backward_item)(void *context, int64_t item) {
    NAME(norm_t) *c = context;
    const int64_t d = c->width, group = item / c->blocks, first = item % c->blocks * BLOCK;
    const int64_t last = first + BLOCK < c->group ? first + BLOCK : c->group;
    REAL *s = aligned_memory(3 * d * sizeof(REAL)), *m = s + d, *add = m + d;
    REAL *along = c->along + item * d, *across = c->across + item * d;
    if (!s) {
        c->failed = 1;
        return;
    }
    NAME(effective)(c, group, m, add);
    memset(along, 0, d * sizeof(REAL));
    memset(across, 0, d * sizeof(REAL));
    for (int64_t i = group * c->group + first; i < group * c->group + last; i++) {
        const REAL *dy = c->dy + i * c->step_dy, *dsum = c->dsum ? c->dsum + i * c->step_dsum : NULL;
        REAL *dx = c->dx + i * d;
        const REAL r = NAME(centre)(c, c->x + i * c->step_x,
                                    c->residual ? c->residual + i * c->step_residual : NULL, s);
        VEC mean = {0}, product = {0};
        for (int64_t j = 0; j < d; j += NAME(LANES)) {
            VEC n = NAME(load)(s + j, d - j) * r, g = NAME(load)(dy + j, d - j);
            VEC h = g * NAME(load)(m + j, d - j);
            mean += h;
            product += h * n;
            NAME(store)(along + j, NAME(load)(along + j, d - j) + g * n, d - j);
            NAME(store)(across + j, NAME(load)(across + j, d - j) + g, d - j);
        }
        const REAL a = c->centred ? NAME(sum)(mean) / d : 0, b = NAME(sum)(product) / d * r;
        for (int64_t j = 0; j < d; j++) dx[j] = r * (dy[j] * m[j] - a - s[j] * b);
        if (dsum)
            for (int64_t j = 0; j < d; j++) dx[j] += dsum[j];
    }
    free(s);
}

static int NAME(norm_run)(NAME(norm_t) *c, int threads, void (*task)(void *, int64_t)) {
    c->blocks = (c->group + BLOCK - 1) / BLOCK;
    run_team(c->group ? c->rows / c->group * c->blocks : 0, threads, task, c);
    return c->failed;
}

int NAME(norm_forward)(int64_t rows, int64_t width, int64_t group, double eps, int centred, const REAL *x,
                       int64_t step_x, const REAL *residual, int64_t step_residual, const REAL *weight,
                       const REAL *scale, const REAL *shift, REAL *y, REAL *sum, int threads) {
    NAME(norm_t) c = {.rows = rows, .width = width, .group = group, .eps = eps, .centred = centred, .x = x,
                      .step_x = step_x, .residual = residual, .step_residual = step_residual,
                      .weight = weight, .scale = scale, .shift = shift, .y = y, .sum = sum};
    return NAME(norm_run)(&c, threads, NAME(norm_forward_item));
}

int NAME(norm_backward)(int64_t rows, int64_t width, int64_t group, double eps, int centred, const REAL *x,
                        int64_t step_x, const REAL *residual, int64_t step_residual, const REAL *weight,
                        const REAL *scale, const REAL *dy, int64_t step_dy, const REAL *dsum,
                        int64_t step_dsum, REAL *dx, REAL *along, REAL *across, int threads) {
    NAME(norm_t) c = {.rows = rows, .width = width, .group = group, .eps = eps, .centred = centred, .x = x,
                      .step_x = step_x, .residual = residual, .step_residual = step_residual,
                      .weight = weight, .scale = scale, .dy = dy, .step_dy = step_dy, .dsum = dsum,
                      .step_dsum = step_dsum, .dx = dx, .along = along, .across = across};
    return NAME(norm_run)(&c, threads, NAME(norm_backward_item));
}

/* out [groups, width] = sums of the `blocks` rows of each group of partial [groups * blocks, width]. */
int NAME(sum_blocks)(int64_t groups, int64_t blocks, int64_t width, const REAL *partial, REAL *out) {
    double *sum = aligned_memory(width * sizeof(double));
    if (!sum) return 1;
    for (int64_t g = 0; g < groups; g++) {
        memset(sum, 0, width * sizeof(double));
        for (int64_t i = g * blocks; i < (g + 1) * blocks; i++)
            for (int64_t j = 0; j < width; j++) sum[j] += partial[i * width + j];
        for (int64_t j = 0; j < width; j++) out[g * width + j] = (REAL)sum[j];
    }
    free(sum);
    return 0;
}

/* y = a sigmoid(a) b; dy NULL in the forward. */
typedef struct {
    int64_t rows, width, per;
    const REAL *a, *b, *dy;
    int64_t step_a, step_b, step_dy;
    REAL *y, *da, *db;
} NAME(swiglu_t);

static void NAME(swiglu_item)(void *context, int64_t item) {
    const NAME(swiglu_t) *c = context;
    const int64_t d = c->width, last = (item + 1) * c->per < c->rows ? (item + 1) * c->per : c->rows;
    for (int64_t i = item * c->per; i < last; i++)
        for (int64_t j = 0; j < d; j += NAME(LANES)) {
            const VEC a = NAME(load)(c->a + i * c->step_a + j, d - j);
            const VEC b = NAME(load)(c->b + i * c->step_b + j, d - j);
            const VEC gate = NAME(sigmoid)(a);
            if (!c->dy) {
                NAME(store)(c->y + i * d + j, a * gate * b, d - j);
                continue;
            }
            const VEC dy = NAME(load)(c->dy + i * c->step_dy + j, d - j);
            NAME(store)(c->da + i * d + j, dy * b * gate * (1 + a * (1 - gate)), d - j);
            NAME(store)(c->db + i * d + j, dy * a * gate, d - j);
        }
}

int NAME(swiglu)(int64_t rows, int64_t width, const REAL *a, int64_t step_a, const REAL *b, int64_t step_b,
                 const REAL *dy, int64_t step_dy, REAL *y, REAL *da, REAL *db, int threads) {
    NAME(swiglu_t) c = {rows, width, 1 + 16384 / (width + 1), a, b, dy, step_a, step_b, step_dy, y, da, db};
    run_team((rows + c.per - 1) / c.per, threads, NAME(swiglu_item), &c);
    return 0;
}

/* y[m, b, t] = x_t + (x_{t-1} - x_t) mu_m with x_{-1} = previous. dy, y are contiguous [mixes, batch, time]. */
typedef struct {
    int64_t mixes, batch, time, width, blocks;
    const REAL *x, *mu, *previous, *dy, *dlast;
    int64_t step_b, step_t;
    REAL *y, *dx, *dprevious, *dmu;
} NAME(shift_t);

static void NAME(shift_forward_item)(void *context, int64_t item) {
    const NAME(shift_t) *c = context;
    const int64_t d = c->width, b = item / c->blocks, first = item % c->blocks * BLOCK;
    const int64_t last = first + BLOCK < c->time ? first + BLOCK : c->time;
    for (int64_t t = first; t < last; t++) {
        const REAL *x = c->x + b * c->step_b + t * c->step_t;
        const REAL *before = t ? x - c->step_t : c->previous + b * d;
        for (int64_t m = 0; m < c->mixes; m++) {
            const REAL *mu = c->mu + m * d;
            REAL *y = c->y + ((m * c->batch + b) * c->time + t) * d;
            for (int64_t j = 0; j < d; j++) y[j] = x[j] + (before[j] - x[j]) * mu[j];
        }
    }
}

static void NAME(shift_backward_item)(void *context, int64_t item) {
    const NAME(shift_t) *c = context;
    const int64_t d = c->width, b = item / c->blocks, first = item % c->blocks * BLOCK;
    const int64_t last = first + BLOCK < c->time ? first + BLOCK : c->time;
    REAL *dmu = c->dmu + item * c->mixes * d;
    memset(dmu, 0, c->mixes * d * sizeof(REAL));
    if (first == 0) memset(c->dprevious + b * d, 0, d * sizeof(REAL));
    for (int64_t t = first; t < last; t++) {
        const REAL *x = c->x + b * c->step_b + t * c->step_t;
        const REAL *before = t ? x - c->step_t : c->previous + b * d;
        REAL *dx = c->dx + (b * c->time + t) * d, *dprevious = c->dprevious + b * d;
        const int end = t + 1 == c->time;
        if (end && c->dlast) memcpy(dx, c->dlast + b * d, d * sizeof(REAL));
        else memset(dx, 0, d * sizeof(REAL));
        for (int64_t m = 0; m < c->mixes; m++) {
            const REAL *mu = c->mu + m * d, *dy = c->dy + ((m * c->batch + b) * c->time + t) * d;
            REAL *sum = dmu + m * d;
            for (int64_t j = 0; j < d; j++) sum[j] += dy[j] * (before[j] - x[j]);
            for (int64_t j = 0; j < d; j++) dx[j] += dy[j] * (1 - mu[j]);
            if (!end)
                for (int64_t j = 0; j < d; j++) dx[j] += dy[d + j] * mu[j];
            if (t == 0)
                for (int64_t j = 0; j < d; j++) dprevious[j] += dy[j] * mu[j];
        }
    }
}

int NAME(shift)(int64_t mixes, int64_t batch, int64_t time, int64_t width, const REAL *x, int64_t step_b,
                int64_t step_t, const REAL *mu, const REAL *previous, REAL *y, const REAL *dy,
                const REAL *dlast, REAL *dx, REAL *dprevious, REAL *dmu, int threads) {
    NAME(shift_t) c = {mixes, batch, time, width, (time + BLOCK - 1) / BLOCK, x, mu, previous, dy, dlast,
                       step_b, step_t, y, dx, dprevious, dmu};
    run_team(batch * c.blocks, threads, dy ? NAME(shift_backward_item) : NAME(shift_forward_item), &c);
    return 0;
}
