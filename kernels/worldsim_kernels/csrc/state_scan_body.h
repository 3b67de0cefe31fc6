/* The body of state_scan.c, once for float and once for double. Scratch rows are `pitch` numbers long for
   keys (a multiple of sixteen) and NV vectors for values: four, two or one of floats, always two of doubles,
   which are here for checks and for exactness and need not be as fast. */

/* Numbers at `from` of axis 3 of tokens t0.. of (row, head); zeros to the end of a scratch row. */
NOINLINE void FN(pack)(real *to, int64_t pitch, const tensor_t *x, int64_t row, int64_t t0, int64_t tokens,
                       int64_t head, int64_t from, int64_t count) {
    if (count > pitch) count = pitch;
    for (int64_t t = 0; t < tokens; t++, to += pitch) {
        int64_t i = 0;
        if (x->data) {
            const real *source = (const real *)x->data + row * x->stride[0] + (t0 + t) * x->stride[1] +
                                 head * x->stride[2] + from * x->stride[3];
            if (x->stride[3] == 1)
                for (; i + FN(LANES) <= count; i += FN(LANES)) *(vec *)(to + i) = *(const vecu *)(source + i);
            for (; i < count; i++) to[i] = source[i * x->stride[3]];
        }
        for (; i < pitch; i++) to[i] = 0;
    }
}

/* The opposite; `add` when another tile of columns wrote here before. */
NOINLINE void FN(unpack)(const real *from, int64_t pitch, const tensor_t *x, int64_t row, int64_t t0,
                         int64_t tokens, int64_t head, int64_t at, int64_t count, real factor, int add) {
    if (!x->data) return;
    if (count > pitch) count = pitch;
    for (int64_t t = 0; t < tokens; t++, from += pitch) {
        real *to = (real *)x->data + row * x->stride[0] + (t0 + t) * x->stride[1] + head * x->stride[2] +
                   at * x->stride[3];
        int64_t i = 0;
        if (x->stride[3] == 1)
            for (; i + FN(LANES) <= count; i += FN(LANES)) {
                vec y = *(const vec *)(from + i) * factor;
                *(vecu *)(to + i) = add ? *(vecu *)(to + i) + y : y;
            }
        for (; i < count; i++) {
            real y = from[i] * factor, *place = to + i * x->stride[3];
            *place = add ? *place + y : y;
        }
    }
}

/* Columns `at` to `at + width` of the state [n, head], to or from scratch; zeros beyond. */
static void FN(load_state)(real *to, int64_t pitch, int64_t width, const tensor_t *x, int64_t n, int64_t head,
                           const call_t *c, int64_t at) {
    tensor_t rows = {x->data, {x->stride[0], x->stride[2], x->stride[1], x->stride[3]}};
    FN(pack)(to, width, &rows, n, 0, c->keys, head, at, c->values - at);
    memset(to + c->keys * width, 0, (pitch - c->keys) * width * sizeof(real));
}

static void FN(store_state)(const real *from, int64_t width, const tensor_t *x, int64_t n, int64_t head,
                            const call_t *c, int64_t at) {
    tensor_t rows = {x->data, {x->stride[0], x->stride[2], x->stride[1], x->stride[3]}};
    FN(unpack)(from, width, &rows, n, 0, c->keys, head, at, c->values - at, 1, 0);
}

static void FN(exp_all)(real *x, int64_t count) {
#if FLOATS
    for (int64_t i = 0; i < count; i += LANES_f32) *(f32v *)(x + i) = exp_f32(*(f32v *)(x + i));
#else
    for (int64_t i = 0; i < count; i++) x[i] = exp(x[i]);
#endif
}

/* Packed tokens of one block: rows of keys, rows of values, and what they give. */
typedef struct {
    int64_t pitch, rows, width; /* of a row of keys, rows of S in use, of a row of values */
    real *q, *k, *w, *a, *b, *bonus, *v, *o;
    real *S;
} FN(block_t);

static int64_t FN(block_size)(int64_t pitch, int64_t width) {
    return (5 * (BLOCK + 1) + 1) * pitch + 2 * BLOCK * width;
}

static real *FN(block_place)(FN(block_t) * m, real *at) {
    real **keys[] = {&m->q, &m->k, &m->w, &m->a, &m->b};
    for (int i = 0; i < 5; i++, at += (BLOCK + 1) * m->pitch) *keys[i] = at;
    m->bonus = at, at += m->pitch;
    m->v = at, at += BLOCK * m->width;
    m->o = at, at += BLOCK * m->width;
    return at;
}

static void FN(load)(FN(block_t) * m, const call_t *c, int64_t row, int64_t t0, int64_t tokens, int64_t head,
                     int64_t at) {
    FN(pack)(m->q, m->pitch, &c->q, row, t0, tokens, head, 0, c->keys);
    FN(pack)(m->k, m->pitch, &c->k, row, t0, tokens, head, 0, c->keys);
    FN(pack)(m->v, m->width, &c->v, row, t0, tokens, head, at, c->values - at);
    if (c->a.data) {
        FN(pack)(m->a, m->pitch, &c->a, row, t0, tokens, head, 0, c->keys);
        FN(pack)(m->b, m->pitch, &c->b, row, t0, tokens, head, 0, c->keys);
        memset(m->a + tokens * m->pitch, 0, m->pitch * sizeof(real)); /* there is no next token here */
    }
    if (c->g.data && !c->head_gate) {
        FN(pack)(m->w, m->pitch, &c->g, row, t0, tokens, head, 0, c->keys);
        FN(exp_all)(m->w, tokens * m->pitch);
    } else if (c->g.data) {
        real decay[BLOCK] __attribute__((aligned(64)));
        tensor_t flat = {c->g.data, {c->g.stride[0], 0, c->g.stride[2], c->g.stride[1]}};
        FN(pack)(decay, BLOCK, &flat, row, 0, 1, head, t0, tokens);
        FN(exp_all)(decay, BLOCK);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < m->pitch; i += FN(LANES))
                *(vec *)(m->w + t * m->pitch + i) = decay[t] - (vec){0};
    }
}

/* sum_i q_i u_i k_i */
static real FN(bonus_of)(const FN(block_t) * m, int64_t t) {
    const real *q = m->q + t * m->pitch, *k = m->k + t * m->pitch;
    real sum = 0;
    for (int64_t i = 0; i < m->rows; i++) sum += q[i] * m->bonus[i] * k[i];
    return sum;
}

/* No low rank: R rows of S stay in registers over the block's tokens. */
INLINE void FN(high)(const FN(block_t) * m, int64_t tokens, const int R, const int NV, const int gate,
                     const int read) {
    const int64_t pitch = m->pitch;
    for (int64_t i = 0; i < m->rows; i += R) {
        vec s[16], *S = (vec *)m->S + i * NV;
        UNROLL for (int x = 0; x < R * NV; x++) s[x] = S[x];
        const real *q = m->q + i, *k = m->k + i, *w = m->w + i;
        const vec *v = (const vec *)m->v;
        vec *o = (vec *)m->o;
        for (int64_t t = 0; t < tokens; t++, q += pitch, k += pitch, w += pitch, v += NV, o += NV) {
            vec seen[4];
            if (read) UNROLL for (int j = 0; j < NV; j++) seen[j] = o[j];
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int j = 0; j < NV; j++) {
                    vec before = s[r * NV + j];
                    vec after = gate ? before * w[r] + k[r] * v[j] : before + k[r] * v[j];
                    if (read) seen[j] += q[r] * (read == AFTER ? after : before);
                    s[r * NV + j] = after;
                }
            }
            if (read) UNROLL for (int j = 0; j < NV; j++) o[j] = seen[j];
        }
        UNROLL for (int x = 0; x < R * NV; x++) S[x] = s[x];
    }
}

/* r = S^T a */
NOINLINE void FN(read_state)(vec *r, const vec *S, const real *a, int64_t rows, const int NV) {
    UNROLL for (int j = 0; j < NV; j++) r[j] = (vec){0};
    for (int64_t i = 0; i < rows; i++) UNROLL for (int j = 0; j < NV; j++) r[j] += a[i] * S[i * NV + j];
}

/* Low rank: one pass over S for each token. */
INLINE void FN(low)(const FN(block_t) * m, int64_t tokens, const int NV, const int gate, const int read) {
    const int64_t pitch = m->pitch;
    vec *S = (vec *)m->S, r[4];
    FN(read_state)(r, S, m->a, m->rows, NV);
    for (int64_t t = 0; t < tokens; t++) {
        const real *q = m->q + t * pitch, *k = m->k + t * pitch, *w = m->w + t * pitch;
        const real *b = m->b + t * pitch, *next = m->a + (t + 1) * pitch;
        const vec *v = (const vec *)m->v + t * NV;
        vec *o = (vec *)m->o + t * NV, seen[4], gathered[4], value[4];
        UNROLL for (int j = 0; j < NV; j++) seen[j] = o[j], gathered[j] = (vec){0}, value[j] = v[j];
        for (int64_t i = 0; i < m->rows; i++) {
            const real qi = q[i], ki = k[i], wi = w[i], bi = b[i], ni = next[i];
            UNROLL for (int j = 0; j < NV; j++) {
                vec before = S[i * NV + j];
                vec after = (gate ? before * wi : before) + bi * r[j] + ki * value[j];
                if (read) seen[j] += qi * (read == AFTER ? after : before);
                gathered[j] += ni * after;
                S[i * NV + j] = after;
            }
        }
        UNROLL for (int j = 0; j < NV; j++) o[j] = seen[j], r[j] = gathered[j];
    }
}

#define READS(f, ...)                                                                                \
    if (read == UNREAD) gate ? f(__VA_ARGS__, 1, UNREAD) : f(__VA_ARGS__, 0, UNREAD);                \
    if (read == AFTER) gate ? f(__VA_ARGS__, 1, AFTER) : f(__VA_ARGS__, 0, AFTER);                   \
    if (read == BEFORE) gate ? f(__VA_ARGS__, 1, BEFORE) : f(__VA_ARGS__, 0, BEFORE);
#define ADVANCE(NV, R)                                                                               \
    if (lowrank) {                                                                                   \
        READS(FN(low), m, tokens, NV)                                                                \
    } else {                                                                                         \
        READS(FN(high), m, tokens, R, NV)                                                            \
    }

/* S and o after the block's tokens; o holds its first term (zero, or the bonus) before. */
static void FN(advance)(const FN(block_t) * m, int64_t tokens, int gate, int lowrank, int read) {
#if FLOATS
    if (m->width == 4 * FN(LANES)) {
        ADVANCE(4, ACCUMULATORS / 4)
    } else if (m->width == FN(LANES)) {
        ADVANCE(1, 8)
    } else
#endif
    {
        ADVANCE(2, ACCUMULATORS / 2)
    }
}

/* What o holds before S is read: zero, or the bonus. */
static void FN(first_output)(FN(block_t) * m, const call_t *c, int64_t tokens, int64_t head) {
    memset(m->o, 0, tokens * m->width * sizeof(real));
    if (!c->bonus.data) return;
    FN(pack)(m->bonus, m->pitch, &c->bonus, head, 0, 1, 0, 0, c->keys);
    for (int64_t t = 0; t < tokens; t++) {
        real factor = FN(bonus_of)(m, t);
        for (int64_t j = 0; j < m->width; j++) m->o[t * m->width + j] = factor * m->v[t * m->width + j];
    }
}

static int64_t FN(tiles)(const call_t *c) { return (c->values + c->width - 1) / c->width; }

/* `group` (head, tile)s of one sequence, block of tokens by block: their rows are neighbours in memory, which
   the processor then fetches ahead of use. */
static void FN(forward_item)(void *context, int64_t item) {
    run_t *run = context;
    const call_t *c = run->call;
    int64_t tiles = FN(tiles)(c), units = c->heads * tiles, groups = (units + c->group - 1) / c->group;
    int64_t n = item / groups, first = item % groups * c->group, row, start, end;
    int64_t last = first + c->group < units ? first + c->group : units;
    sequence_of(c, n, &row, &start, &end);
    FN(block_t) m = {.pitch = up(c->keys, 16), .rows = up(c->keys, 8), .width = c->width};
    const int64_t size = m.pitch * m.width;
    real *memory = aligned_memory((FN(block_size)(m.pitch, m.width) + c->group * size) * sizeof(real));
    if (!memory) {
        run->failed = 1;
        return;
    }
    real *states = FN(block_place)(&m, memory);
    for (int64_t u = first; u < last; u++)
        FN(load_state)(states + (u - first) * size, m.pitch, m.width, &c->initial, n, u / tiles, c,
                       u % tiles * c->width);
    for (int64_t t0 = start; t0 < end; t0 += BLOCK)
        for (int64_t u = first; u < last; u++) {
            int64_t tokens = end - t0 < BLOCK ? end - t0 : BLOCK, head = u / tiles, at = u % tiles * c->width;
            m.S = states + (u - first) * size;
            FN(load)(&m, c, row, t0, tokens, head, at);
            FN(first_output)(&m, c, tokens, head);
            FN(advance)(&m, tokens, c->g.data != NULL, c->a.data != NULL, c->bonus.data ? BEFORE : AFTER);
            FN(unpack)(m.o, m.width, &c->output, row, t0, tokens, head, at, c->values - at, c->scale, 0);
        }
    for (int64_t u = first; u < last; u++)
        FN(store_state)(states + (u - first) * size, m.width, &c->state, n, u / tiles, c,
                        u % tiles * c->width);
    free(memory);
}

int FN(state_scan_forward)(const call_t *c) {
    run_t run = {c, 0};
    int64_t groups = (c->heads * FN(tiles)(c) + c->group - 1) / c->group;
    run_team(c->sequences * groups, (int)c->threads, FN(forward_item), &run);
    return run.failed;
}

/* to_i = the sum of the numbers of x_i; always in the same order. */
NOINLINE void FN(sum_rows)(real *to, const vec *x, int64_t rows) {
    int64_t i = 0;
#if FLOATS
    for (; i + LANES_f32 <= rows; i += LANES_f32) *(vec *)(to + i) = sums_f32(x + i);
#endif
    for (; i < rows; i++) {
        const quarter *y = (const quarter *)(x + i);
        quarter z = y[0];
        UNROLL for (int j = 1; j < REGISTER / 16; j++) z += y[j];
#if FLOATS
        real sum = (z[0] + z[1]) + (z[2] + z[3]);
#else
        real sum = z[0] + z[1];
#endif
        to[i] = sum;
    }
}

/* A chunk of BLOCK tokens backward. `history` has S before token t at t * step; D is the gradient of S after
   the chunk, then before it. */
typedef struct {
    FN(block_t) m; /* m.o holds the output's gradient times scale */
    int64_t step;
    real *history, *D, *r, *dv, *dq, *dk, *dw, *da, *db;
    vec *sums;
} FN(chunk_t);

/* The states of the chunk once more, r_t = S_{t-1}^T a_t, and dq_t = S_t do_t (S_{t-1} do_t with a bonus). */
INLINE void FN(again)(const FN(chunk_t) * c, int64_t tokens, const int NV, const int gate, const int lowrank,
                      const int bonus) {
    const FN(block_t) *m = &c->m;
    const int64_t pitch = m->pitch;
    if (lowrank) FN(read_state)((vec *)c->r, (vec *)c->history, m->a, m->rows, NV);
    for (int64_t t = 0; t < tokens; t++) {
        const real *k = m->k + t * pitch, *w = m->w + t * pitch, *b = m->b + t * pitch;
        const real *next = m->a + (t + 1) * pitch;
        const vec *v = (vec *)m->v + t * NV, *d_o = (vec *)m->o + t * NV;
        const vec *S = (vec *)(c->history + t * c->step);
        vec *T = (vec *)(c->history + (t + 1) * c->step), *r = (vec *)c->r + t * NV, gathered[4];
        UNROLL for (int j = 0; j < NV; j++) gathered[j] = (vec){0};
        for (int64_t i = 0; i < m->rows; i++) {
            const real ki = k[i], wi = w[i], bi = b[i], ni = next[i];
            vec sum = {0};
            UNROLL for (int j = 0; j < NV; j++) {
                vec before = S[i * NV + j];
                vec after = (gate ? before * wi : before) + ki * v[j];
                if (lowrank) after += bi * r[j], gathered[j] += ni * after;
                sum += (bonus ? before : after) * d_o[j];
                T[i * NV + j] = after;
            }
            c->sums[i] = sum;
        }
        if (lowrank) UNROLL for (int j = 0; j < NV; j++) r[NV + j] = gathered[j];
        FN(sum_rows)(c->dq + t * pitch, c->sums, m->rows);
    }
}

/* dk = D v, dv = D^T k, db = D r, dr = D^T b, where D is the gradient of S_t with that of o_t. */
INLINE void FN(reverse_written)(const FN(chunk_t) * c, int64_t t, vec *dr, const int NV, const int bonus) {
    const FN(block_t) *m = &c->m;
    const int64_t pitch = m->pitch;
    const real *q = m->q + t * pitch, *k = m->k + t * pitch, *b = m->b + t * pitch;
    const vec *v = (vec *)m->v + t * NV, *d_o = (vec *)m->o + t * NV, *r = (vec *)c->r + t * NV;
    vec *D = (vec *)c->D, dv[4], *db = c->sums + m->rows;
    UNROLL for (int j = 0; j < NV; j++) dv[j] = dr[j] = (vec){0};
    for (int64_t i = 0; i < m->rows; i++) {
        const real qi = q[i], ki = k[i], bi = b[i];
        vec sum_k = {0}, sum_b = {0};
        UNROLL for (int j = 0; j < NV; j++) {
            vec d = D[i * NV + j];
            if (!bonus) D[i * NV + j] = d = d + qi * d_o[j];
            sum_k += d * v[j], sum_b += d * r[j];
            dv[j] += ki * d, dr[j] += bi * d;
        }
        c->sums[i] = sum_k, db[i] = sum_b;
    }
    UNROLL for (int j = 0; j < NV; j++) ((vec *)c->dv)[t * NV + j] = dv[j];
    FN(sum_rows)(c->dk + t * pitch, c->sums, m->rows);
    FN(sum_rows)(c->db + t * pitch, db, m->rows);
}

/* da = S_{t-1} dr, dw = rowsum(D S_{t-1}), D <- diag(w) D + a dr^T (+ q do^T when S_{t-1} was read). */
INLINE void FN(reverse_carried)(const FN(chunk_t) * c, int64_t t, const vec *dr, const int NV, const int gate,
                                const int bonus) {
    const FN(block_t) *m = &c->m;
    const int64_t pitch = m->pitch;
    const real *q = m->q + t * pitch, *w = m->w + t * pitch, *a = m->a + t * pitch;
    const vec *d_o = (vec *)m->o + t * NV, *S = (vec *)(c->history + t * c->step);
    vec *D = (vec *)c->D, *dw = c->sums + m->rows;
    for (int64_t i = 0; i < m->rows; i++) {
        const real qi = q[i], wi = w[i], ai = a[i];
        vec sum_a = {0}, sum_w = {0};
        UNROLL for (int j = 0; j < NV; j++) {
            vec d = D[i * NV + j], s = S[i * NV + j];
            sum_a += s * dr[j];
            if (gate) sum_w += s * d, d = d * wi;
            d += ai * dr[j];
            D[i * NV + j] = bonus ? d + qi * d_o[j] : d;
        }
        c->sums[i] = sum_a, dw[i] = sum_w;
    }
    FN(sum_rows)(c->da + t * pitch, c->sums, m->rows);
    if (gate) FN(sum_rows)(c->dw + t * pitch, dw, m->rows);
}

/* Both at once, without a low rank. */
INLINE void FN(reverse_high)(const FN(chunk_t) * c, int64_t t, const int NV, const int gate,
                             const int bonus) {
    const FN(block_t) *m = &c->m;
    const int64_t pitch = m->pitch;
    const real *q = m->q + t * pitch, *k = m->k + t * pitch, *w = m->w + t * pitch;
    const vec *v = (vec *)m->v + t * NV, *d_o = (vec *)m->o + t * NV, *S = (vec *)(c->history + t * c->step);
    vec *D = (vec *)c->D, *dw = c->sums + m->rows, dv[4];
    UNROLL for (int j = 0; j < NV; j++) dv[j] = (vec){0};
    for (int64_t i = 0; i < m->rows; i++) {
        const real qi = q[i], ki = k[i], wi = w[i];
        vec sum_k = {0}, sum_w = {0};
        UNROLL for (int j = 0; j < NV; j++) {
            vec d = D[i * NV + j];
            if (!bonus) d += qi * d_o[j];
            sum_k += d * v[j];
            dv[j] += ki * d;
            if (gate) sum_w += d * S[i * NV + j], d = d * wi;
            D[i * NV + j] = bonus ? d + qi * d_o[j] : d;
        }
        c->sums[i] = sum_k;
        if (gate) dw[i] = sum_w;
    }
    UNROLL for (int j = 0; j < NV; j++) ((vec *)c->dv)[t * NV + j] = dv[j];
    FN(sum_rows)(c->dk + t * pitch, c->sums, m->rows);
    if (gate) FN(sum_rows)(c->dw + t * pitch, dw, m->rows);
}

INLINE void FN(reverse)(const FN(chunk_t) * c, int64_t tokens, const int NV, const int gate,
                        const int lowrank, const int bonus) {
    FN(again)(c, tokens, NV, gate, lowrank, bonus);
    for (int64_t t = tokens - 1; t >= 0; t--) {
        vec dr[4];
        if (lowrank) {
            FN(reverse_written)(c, t, dr, NV, bonus);
            FN(reverse_carried)(c, t, dr, NV, gate, bonus);
        } else
            FN(reverse_high)(c, t, NV, gate, bonus);
    }
}

#define REVERSE(NV)                                                                                  \
    switch (gate * 4 + lowrank * 2 + bonus) {                                                        \
    case 0: FN(reverse)(c, tokens, NV, 0, 0, 0); break;                                              \
    case 1: FN(reverse)(c, tokens, NV, 0, 0, 1); break;                                              \
    case 2: FN(reverse)(c, tokens, NV, 0, 1, 0); break;                                              \
    case 3: FN(reverse)(c, tokens, NV, 0, 1, 1); break;                                              \
    case 4: FN(reverse)(c, tokens, NV, 1, 0, 0); break;                                              \
    case 5: FN(reverse)(c, tokens, NV, 1, 0, 1); break;                                              \
    case 6: FN(reverse)(c, tokens, NV, 1, 1, 0); break;                                              \
    default: FN(reverse)(c, tokens, NV, 1, 1, 1);                                                    \
    }

static void FN(reverse_chunk)(const FN(chunk_t) * c, int64_t tokens, int gate, int lowrank, int bonus) {
#if FLOATS
    if (c->m.width == 4 * FN(LANES)) {
        REVERSE(4)
    } else if (c->m.width == FN(LANES)) {
        REVERSE(1)
    } else
#endif
    {
        REVERSE(2)
    }
}

/* The direct terms of a bonus: o_t has (sum_i q_i u_i k_i) v_t. */
static void FN(reverse_bonus)(const FN(chunk_t) * c, int64_t tokens, real *d_bonus) {
    const FN(block_t) *m = &c->m;
    for (int64_t t = 0; t < tokens; t++) {
        const real *q = m->q + t * m->pitch, *k = m->k + t * m->pitch, *u = m->bonus;
        const real *v = m->v + t * m->width, *d_o = m->o + t * m->width;
        real *dq = c->dq + t * m->pitch, *dk = c->dk + t * m->pitch, *dv = c->dv + t * m->width;
        real factor = FN(bonus_of)(m, t), along = 0;
        for (int64_t j = 0; j < m->width; j++) along += v[j] * d_o[j], dv[j] += factor * d_o[j];
        for (int64_t i = 0; i < m->rows; i++) {
            dq[i] += u[i] * k[i] * along;
            dk[i] += u[i] * q[i] * along;
            d_bonus[i] += q[i] * k[i] * along;
        }
    }
}

/* The gradients of the chunk's tokens to where they belong; dg = w dw. */
static void FN(deliver)(FN(chunk_t) * s, const call_t *c, int64_t row, int64_t t0, int64_t tokens,
                        int64_t head, int64_t at) {
    FN(block_t) *m = &s->m;
    const int add = at > 0;
    FN(unpack)(s->dq, m->pitch, &c->dq, row, t0, tokens, head, 0, c->keys, 1, add);
    FN(unpack)(s->dk, m->pitch, &c->dk, row, t0, tokens, head, 0, c->keys, 1, add);
    FN(unpack)(s->dv, m->width, &c->dv, row, t0, tokens, head, at, c->values - at, 1, 0);
    FN(unpack)(s->da, m->pitch, &c->da, row, t0, tokens, head, 0, c->keys, 1, add);
    FN(unpack)(s->db, m->pitch, &c->db, row, t0, tokens, head, 0, c->keys, 1, add);
    if (!c->dg.data) return;
    for (int64_t t = 0; t < tokens; t++) {
        real *dw = s->dw + t * m->pitch, *w = m->w + t * m->pitch, sum = 0;
        for (int64_t i = 0; i < m->rows; i++) dw[i] *= w[i];
        if (!c->head_gate) continue;
        for (int64_t i = 0; i < m->rows; i++) sum += dw[i];
        dw[0] = sum;
    }
    FN(unpack)(s->dw, m->pitch, &c->dg, row, t0, tokens, head, 0, c->head_gate ? 1 : c->keys, 1, add);
}

/* One (sequence, head), tile of columns after tile: the gradients of keys are sums over all of them. S is
   kept every `stretch` chunks (so at most CHECKPOINTS times), then at every chunk of the stretch in hand. */
typedef struct {
    const call_t *call;
    int64_t n, row, start, end, head, chunks, stretch, size; /* size of a state */
    real *kept, *near, *d_bonus;
    FN(chunk_t) chunk;
} FN(item_t);

static int64_t FN(tokens_of)(const FN(item_t) * x, int64_t chunk) {
    int64_t left = x->end - x->start - chunk * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

static void FN(load_chunk)(FN(item_t) * x, int64_t chunk, int64_t at) {
    FN(load)(&x->chunk.m, x->call, x->row, x->start + chunk * BLOCK, FN(tokens_of)(x, chunk), x->head, at);
}

/* The state after `chunk`, in place. */
static void FN(pass)(FN(item_t) * x, real *S, int64_t chunk, int64_t at) {
    const call_t *c = x->call;
    FN(load_chunk)(x, chunk, at);
    x->chunk.m.S = S;
    FN(advance)(&x->chunk.m, FN(tokens_of)(x, chunk), c->g.data != NULL, c->a.data != NULL, UNREAD);
}

static void FN(backward_tile)(FN(item_t) * x, int64_t at) {
    const call_t *c = x->call;
    FN(chunk_t) *s = &x->chunk;
    const int64_t bytes = x->size * sizeof(real);
    real *S = s->history;
    FN(load_state)(S, s->m.pitch, s->m.width, &c->initial, x->n, x->head, c, at);
    for (int64_t i = 0; i < x->chunks; i++) {
        if (i % x->stretch == 0) memcpy(x->kept + i / x->stretch * x->size, S, bytes);
        if (i / x->stretch < (x->chunks - 1) / x->stretch) FN(pass)(x, S, i, at);
    }
    FN(load_state)(s->D, s->m.pitch, s->m.width, &c->d_state, x->n, x->head, c, at);
    int64_t stretches = (x->chunks + x->stretch - 1) / x->stretch;
    for (int64_t first = (stretches - 1) * x->stretch; first >= 0; first -= x->stretch) {
        int64_t last = first + x->stretch < x->chunks ? first + x->stretch : x->chunks;
        memcpy(x->near, x->kept + first / x->stretch * x->size, bytes);
        for (int64_t i = first + 1; i < last; i++) {
            real *next = x->near + (i - first) * x->size;
            memcpy(next, next - x->size, bytes);
            FN(pass)(x, next, i - 1, at);
        }
        for (int64_t i = last - 1; i >= first; i--) {
            int64_t tokens = FN(tokens_of)(x, i), t0 = x->start + i * BLOCK;
            memcpy(s->history, x->near + (i - first) * x->size, bytes);
            FN(load_chunk)(x, i, at);
            FN(pack)(s->m.o, s->m.width, &c->d_output, x->row, t0, tokens, x->head, at, c->values - at);
            for (int64_t j = 0; j < tokens * s->m.width; j++) s->m.o[j] *= (real)c->scale;
            FN(reverse_chunk)(s, tokens, c->g.data != NULL, c->a.data != NULL, c->bonus.data != NULL);
            if (c->bonus.data) FN(reverse_bonus)(s, tokens, x->d_bonus);
            FN(deliver)(s, c, x->row, t0, tokens, x->head, at);
        }
    }
    FN(store_state)(s->D, s->m.width, &c->d_initial, x->n, x->head, c, at);
}

static void FN(backward_item)(void *context, int64_t item) {
    run_t *run = context;
    const call_t *c = run->call;
    FN(item_t) x = {.call = c, .n = item / c->heads, .head = item % c->heads};
    FN(chunk_t) *s = &x.chunk;
    FN(block_t) *m = &s->m;
    sequence_of(c, x.n, &x.row, &x.start, &x.end);
    m->pitch = up(c->keys, 16), m->rows = up(c->keys, 8), m->width = c->width;
    x.chunks = (x.end - x.start + BLOCK - 1) / BLOCK;
    x.stretch = x.chunks > CHECKPOINTS ? (x.chunks + CHECKPOINTS - 1) / CHECKPOINTS : 1;
    x.size = m->pitch * m->width;
    s->step = c->g.data || c->a.data ? x.size : 0; /* otherwise no gradient needs the past states */
    int64_t kept = (x.chunks + x.stretch - 1) / x.stretch + x.stretch;
    int64_t numbers = FN(block_size)(m->pitch, m->width) + (kept + 1 + (s->step ? BLOCK + 1 : 1)) * x.size +
                      (2 * BLOCK + 1) * m->width + (5 * BLOCK + 1) * m->pitch + 2 * m->rows * FN(LANES);
    real *memory = aligned_memory(numbers * sizeof(real)), *place;
    if (!memory) {
        run->failed = 1;
        return;
    }
    place = FN(block_place)(m, memory);
    s->history = place, place += (s->step ? BLOCK + 1 : 1) * x.size;
    s->D = place, place += x.size;
    x.near = place, place += x.stretch * x.size;
    x.kept = place, place += (kept - x.stretch) * x.size;
    s->r = place, place += (BLOCK + 1) * m->width;
    s->dv = place, place += BLOCK * m->width;
    s->sums = (vec *)place, place += 2 * m->rows * FN(LANES);
    real **keys[] = {&s->dq, &s->dk, &s->dw, &s->da, &s->db};
    for (int i = 0; i < 5; i++, place += BLOCK * m->pitch) *keys[i] = place;
    x.d_bonus = place;
    memset(x.d_bonus, 0, m->pitch * sizeof(real));
    FN(pack)(m->bonus, m->pitch, &c->bonus, x.head, 0, 1, 0, 0, c->keys);
    for (int64_t at = 0; at < c->values; at += c->width) FN(backward_tile)(&x, at);
    FN(unpack)(x.d_bonus, m->pitch, &c->d_bonus, x.n, 0, 1, x.head, 0, c->keys, 1, 0);
    free(memory);
}

int FN(state_scan_backward)(const call_t *c) {
    run_t run = {c, 0};
    run_team(c->sequences * c->heads, (int)c->threads, FN(backward_item), &run);
    return run.failed;
}
#undef ADVANCE
#undef READS
#undef REVERSE
