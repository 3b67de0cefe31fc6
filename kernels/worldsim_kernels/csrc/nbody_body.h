/* One dtype: REAL, VEC, VECU, LANES, MASK (the integers of VEC's width) and NAME are defined by nbody.c. */

typedef struct {
    int64_t bodies, padded, dim;
    REAL gravity, soft;                                       /* G, and the square of the softening */
    const REAL *x, *m;                                        /* [row, dim, padded], [row, padded] */
    const REAL *ga, *gp;                                      /* gradients of the two outputs */
    REAL *first, *second;                                     /* [row, dim, padded], [row, padded] */
} NAME(task_t);

/* 1 / sqrt(s): the usual first guess by halving the exponent, and Newton's iteration. Infinite for 0. */
static inline __attribute__((always_inline)) VEC NAME(inverse_root)(VEC s) {
    VEC y = (VEC)(MAGIC - ((MASK)s >> 1)), half = s * (REAL)0.5;
    for (int i = 0; i < NEWTON; i++) y = y * ((REAL)1.5 - half * y * y);
    MASK none = s == (VEC){0};
    return (VEC)((none & (MASK)(INFINITY - (VEC){0})) | (~none & (MASK)y));
}

/* All lanes but the one whose number is ``self``. */
static inline __attribute__((always_inline)) VEC NAME(without)(VEC w, int64_t self) {
    MASK lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (VEC)((lane != (MASK){0} + (SELF)self) & (MASK)w);
}

typedef struct {
    VEC x[3][TILE], sum[3][TILE], pot[TILE];
} NAME(pulled_t);

static inline __attribute__((always_inline)) void NAME(pull)(NAME(pulled_t) *at, const NAME(task_t) *s,
                                                             const REAL *x, const REAL *m, int64_t from,
                                                             int64_t to, int64_t own, const int DIM) {
    for (int64_t j = from; j < to; j++) {
        REAL xj[3], mj = m[j];
        for (int k = 0; k < DIM; k++) xj[k] = x[k * s->padded + j];
        for (int t = 0; t < TILE; t++) {
            VEC d[3], square = s->soft - (VEC){0};
            for (int k = 0; k < DIM; k++) d[k] = xj[k] - at->x[k][t], square += d[k] * d[k];
            VEC w = NAME(inverse_root)(square);
            if (own >= 0) w = NAME(without)(w, j - own - t * LANES);
            VEC f = mj * w;
            at->pot[t] += f;
            f *= w * w;
            for (int k = 0; k < DIM; k++) at->sum[k][t] += f * d[k];
        }
    }
}

/* Accelerations and potentials of one tile of bodies, the pulls added in the order of the bodies. */
static inline __attribute__((always_inline)) void NAME(forward_tile)(const NAME(task_t) *s, int64_t item,
                                                                     const int DIM) {
    int64_t width = TILE * LANES, tiles = s->padded / width, row = item / tiles, i = item % tiles * width;
    const REAL *x = s->x + row * s->dim * s->padded, *m = s->m + row * s->padded;
    int64_t last = i + width < s->bodies ? i + width : s->bodies;
    NAME(pulled_t) at;
    memset(&at, 0, sizeof at);
    for (int k = 0; k < DIM; k++)
        for (int t = 0; t < TILE; t++) at.x[k][t] = *(const VECU *)(x + k * s->padded + i + t * LANES);
    NAME(pull)(&at, s, x, m, 0, i, -1, DIM);
    NAME(pull)(&at, s, x, m, i, last, i, DIM);
    NAME(pull)(&at, s, x, m, last, s->bodies, -1, DIM);
    for (int t = 0; t < TILE; t++) {
        int64_t to = i + t * LANES;
        for (int k = 0; k < DIM; k++)
            *(VECU *)(s->first + (row * s->dim + k) * s->padded + to) = s->gravity * at.sum[k][t];
        *(VECU *)(s->second + row * s->padded + to) = -s->gravity * at.pot[t];
    }
}

typedef struct {
    VEC x[3], m, ga[3], gp, gx[3], gm;
} NAME(pushed_t);

static inline __attribute__((always_inline)) void NAME(push)(NAME(pushed_t) *at, const NAME(task_t) *s,
                                                             int64_t row, int64_t from, int64_t to,
                                                             int64_t own, const int DIM) {
    const REAL *x = s->x + row * s->dim * s->padded, *m = s->m + row * s->padded;
    const REAL *ga = s->ga + row * s->dim * s->padded, *gp = s->gp + row * s->padded;
    for (int64_t j = from; j < to; j++) {
        VEC d[3], b[3], square = s->soft - (VEC){0}, along = {0}, pulled = {0};
        for (int k = 0; k < DIM; k++) {
            REAL g = ga[k * s->padded + j];
            d[k] = x[k * s->padded + j] - at->x[k];
            square += d[k] * d[k];
            b[k] = at->m * g - m[j] * at->ga[k];
            along += b[k] * d[k];
            pulled += g * d[k];
        }
        VEC w = NAME(inverse_root)(square);
        if (own >= 0) w = NAME(without)(w, j - own);
        VEC w2 = w * w, w3 = w2 * w;
        VEC bend = at->gp * m[j] + gp[j] * at->m + (REAL)3 * w2 * along;
        for (int k = 0; k < DIM; k++) at->gx[k] += w3 * (b[k] - bend * d[k]);
        at->gm += pulled * w3 + gp[j] * w;
    }
}

/* The gradients of the places and masses of one vector of bodies. */
static inline __attribute__((always_inline)) void NAME(backward_tile)(const NAME(task_t) *s, int64_t item,
                                                                      const int DIM) {
    int64_t tiles = s->padded / LANES, row = item / tiles, i = item % tiles * LANES;
    int64_t last = i + LANES < s->bodies ? i + LANES : s->bodies, line = row * s->padded + i;
    NAME(pushed_t) at;
    memset(&at, 0, sizeof at);
    at.m = *(const VECU *)(s->m + line), at.gp = *(const VECU *)(s->gp + line);
    for (int k = 0; k < DIM; k++) {
        at.x[k] = *(const VECU *)(s->x + (row * s->dim + k) * s->padded + i);
        at.ga[k] = *(const VECU *)(s->ga + (row * s->dim + k) * s->padded + i);
    }
    if (i < s->bodies) {
        NAME(push)(&at, s, row, 0, i, -1, DIM);
        NAME(push)(&at, s, row, i, last, i, DIM);
        NAME(push)(&at, s, row, last, s->bodies, -1, DIM);
    }
    for (int k = 0; k < DIM; k++)
        *(VECU *)(s->first + (row * s->dim + k) * s->padded + i) = s->gravity * at.gx[k];
    *(VECU *)(s->second + line) = -s->gravity * at.gm;
}

static void NAME(forward_item)(void *context, int64_t item) {
    const NAME(task_t) *s = context;
    if (s->dim == 1) NAME(forward_tile)(s, item, 1);
    if (s->dim == 2) NAME(forward_tile)(s, item, 2);
    if (s->dim == 3) NAME(forward_tile)(s, item, 3);
}

static void NAME(backward_item)(void *context, int64_t item) {
    const NAME(task_t) *s = context;
    if (s->dim == 1) NAME(backward_tile)(s, item, 1);
    if (s->dim == 2) NAME(backward_tile)(s, item, 2);
    if (s->dim == 3) NAME(backward_tile)(s, item, 3);
}

void NAME(nbody_forward)(int64_t rows, int64_t bodies, int64_t padded, int64_t dim, double gravity, double soft,
                         const REAL *x, const REAL *m, REAL *acceleration, REAL *potential, int threads) {
    NAME(task_t) s = {bodies, padded, dim, gravity, soft, x, m, NULL, NULL, acceleration, potential};
    run_team(rows * (padded / (TILE * LANES)), threads, NAME(forward_item), &s);
}

void NAME(nbody_backward)(int64_t rows, int64_t bodies, int64_t padded, int64_t dim, double gravity, double soft,
                          const REAL *x, const REAL *m, const REAL *ga, const REAL *gp, REAL *gx, REAL *gm,
                          int threads) {
    NAME(task_t) s = {bodies, padded, dim, gravity, soft, x, m, ga, gp, gx, gm};
    run_team(rows * (padded / LANES), threads, NAME(backward_item), &s);
}
