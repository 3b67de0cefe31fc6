/* The scan and its backward for one type of number: REAL, with NAME(x) to name the functions. */

typedef struct {
    const REAL *a, *b, *initial, *out, *grad, *grad_state;
    REAL *made, *state, *da, *db, *dinitial;
    int64_t length, lanes, tiles, width;
    /* strides, in numbers: batch, time, lane */
    int64_t as[3], bs[3], gs[3], is[2], es[2];
    int reverse;
} NAME(job_t);

/* One token of a tile: h = a h + b, kept in h and in out. */
static inline __attribute__((always_inline)) void NAME(step)(REAL *restrict h, REAL *restrict out,
                                                            const REAL *restrict a, int64_t sa,
                                                            const REAL *restrict b, int64_t sb, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = h[i] = a[i * sa] * h[i] + b[i * sb];
}

static void NAME(forward)(void *context, int64_t item) {
    const NAME(job_t) *job = context;
    int64_t batch = item / job->tiles, first = item % job->tiles * job->width;
    int64_t n = job->lanes - first < job->width ? job->lanes - first : job->width;
    REAL h[WIDEST] __attribute__((aligned(64)));
    for (int64_t i = 0; i < n; i++)
        h[i] = job->initial ? job->initial[batch * job->is[0] + (first + i) * job->is[1]] : 0;
    for (int64_t step = 0; step < job->length; step++) {
        int64_t t = job->reverse ? job->length - 1 - step : step, sa = job->as[2], sb = job->bs[2];
        const REAL *a = job->a + batch * job->as[0] + t * job->as[1] + first * sa;
        const REAL *b = job->b + batch * job->bs[0] + t * job->bs[1] + first * sb;
        REAL *out = job->made + (batch * job->length + t) * job->lanes + first;
        if (sa == 1 && sb == 1)
            NAME(step)(h, out, a, 1, b, 1, n);
        else
            NAME(step)(h, out, a, sa, b, sb, n);
    }
    memcpy(job->state + batch * job->lanes + first, h, n * sizeof(REAL));
}

/* One token of a tile backwards; l enters as a_{t+1} lambda_{t+1} and leaves as a_t lambda_t. */
static inline __attribute__((always_inline)) void NAME(step_back)(
    REAL *restrict l, const REAL *restrict a, int64_t sa, const REAL *restrict grad, int64_t sg,
    const REAL *restrict before, int64_t sh, REAL *restrict da, REAL *restrict db, int64_t n) {
    if (grad)
        for (int64_t i = 0; i < n; i++) l[i] += grad[i * sg];
    if (db) memcpy(db, l, n * sizeof(REAL));
    if (da)
        for (int64_t i = 0; i < n; i++) da[i] = before ? l[i] * before[i * sh] : 0;
    for (int64_t i = 0; i < n; i++) l[i] *= a[i * sa];
}

static void NAME(backward)(void *context, int64_t item) {
    const NAME(job_t) *job = context;
    int64_t batch = item / job->tiles, first = item % job->tiles * job->width;
    int64_t n = job->lanes - first < job->width ? job->lanes - first : job->width;
    REAL l[WIDEST] __attribute__((aligned(64)));
    for (int64_t i = 0; i < n; i++)
        l[i] = job->grad_state ? job->grad_state[batch * job->es[0] + (first + i) * job->es[1]] : 0;
    for (int64_t step = job->length - 1; step >= 0; step--) {
        int64_t t = job->reverse ? job->length - 1 - step : step, earlier = job->reverse ? t + 1 : t - 1;
        int64_t row = (batch * job->length + t) * job->lanes + first, sa = job->as[2], sg = job->gs[2], sh = 1;
        const REAL *a = job->a + batch * job->as[0] + t * job->as[1] + first * sa;
        const REAL *grad = job->grad ? job->grad + batch * job->gs[0] + t * job->gs[1] + first * sg : NULL;
        const REAL *before = job->out + (batch * job->length + earlier) * job->lanes + first;
        if (step == 0) {
            before = job->initial ? job->initial + batch * job->is[0] + first * job->is[1] : NULL;
            sh = job->is[1];
        }
        REAL *da = job->da ? job->da + row : NULL, *db = job->db ? job->db + row : NULL;
        if (sa == 1 && sg == 1 && sh == 1)
            NAME(step_back)(l, a, 1, grad, 1, before, 1, da, db, n);
        else
            NAME(step_back)(l, a, sa, grad, sg, before, sh, da, db, n);
    }
    if (job->dinitial) memcpy(job->dinitial + batch * job->lanes + first, l, n * sizeof(REAL));
}

/* sizes: batch, length, lanes; strides: of a (3), of b (3) and of initial (2). */
void NAME(affine_scan)(const REAL *a, const REAL *b, const REAL *initial, REAL *out, REAL *state,
                       const int64_t *sizes, const int64_t *as, const int64_t *bs, const int64_t *is,
                       int reverse, int threads) {
    NAME(job_t) job = {.a = a, .b = b, .initial = initial, .made = out, .state = state, .reverse = reverse};
    job.length = sizes[1], job.lanes = sizes[2], job.width = width_of(sizes[0], sizes[2], threads);
    job.tiles = (job.lanes + job.width - 1) / job.width;
    memcpy(job.as, as, sizeof job.as), memcpy(job.bs, bs, sizeof job.bs), memcpy(job.is, is, sizeof job.is);
    run_team(sizes[0] * job.tiles, threads, NAME(forward), &job);
}

/* grad, grad_state and initial may be NULL (zero), da, db and dinitial too (not wanted). */
void NAME(affine_scan_backward)(const REAL *a, const REAL *initial, const REAL *out, const REAL *grad,
                                const REAL *grad_state, REAL *da, REAL *db, REAL *dinitial,
                                const int64_t *sizes, const int64_t *as, const int64_t *is, const int64_t *gs,
                                const int64_t *es, int reverse, int threads) {
    NAME(job_t) job = {.a = a, .initial = initial, .out = out, .grad = grad, .grad_state = grad_state};
    job.da = da, job.db = db, job.dinitial = dinitial, job.reverse = reverse;
    job.length = sizes[1], job.lanes = sizes[2], job.width = width_of(sizes[0], sizes[2], threads);
    job.tiles = (job.lanes + job.width - 1) / job.width;
    memcpy(job.as, as, sizeof job.as), memcpy(job.is, is, sizeof job.is);
    memcpy(job.gs, gs, sizeof job.gs), memcpy(job.es, es, sizeof job.es);
    run_team(sizes[0] * job.tiles, threads, NAME(backward), &job);
}
