/* The selective scan, h = 2^(delta A2) h + delta u B, y = C h + D u, and its backward. Neighbouring channels
   share a vector, one vector of state for each n, so that B_t[n] and C_t[n] are broadcast and y needs no sum
   across lanes. A work item is a batch member and a tile (forward) or a block of tiles (backward). */
#include "vector.h"

#define CHUNK 32 /* tokens between two kept states in the backward */
#define LANES LANES_f32 /* channels of a tile */
#define INLINE static inline __attribute__((always_inline))

/* B, C: [batch, time, group, n]; the strides of u, delta, z and grad are of batch, time, channel. The others
   are contiguous; a2 is A / ln 2. Absent: NULL. */
typedef struct {
    const float *u, *delta, *a2, *b, *c, *d, *z, *bias, *initial, *grad, *grad_state;
    float *out, *state, *du, *ddelta, *da2, *db, *dc, *dd, *dz, *dbias, *dinitial;
    int64_t batch, length, groups, channels, n, softplus; /* channels of one group */
    int64_t us[3], ds[3], zs[3], gs[3], bs[4], cs[4];
    int64_t tiles, blocks; /* of one group */
    int failed;
} job_t;

static __attribute__((noinline)) void gather(float *some, const float *p, int64_t stride, int64_t lanes) {
    for (int64_t i = 0; i < LANES; i++) some[i] = i < lanes ? p[i * stride] : 0;
}

static __attribute__((noinline)) void scatter(const float *some, float *p, int64_t stride, int64_t lanes) {
    for (int64_t i = 0; i < lanes; i++) p[i * stride] = some[i];
}

INLINE f32v load(const float *p, int64_t stride, int64_t lanes) {
    if (stride == 1 && lanes == LANES) return *(const f32vu *)p;
    float some[LANES] __attribute__((aligned(REGISTER)));
    gather(some, p, stride, lanes);
    return *(f32v *)some;
}

INLINE void store(float *p, int64_t stride, f32v v, int64_t lanes) {
    if (stride == 1 && lanes == LANES)
        *(f32vu *)p = v;
    else
        scatter((float *)&v, p, stride, lanes);
}

/* Bounded to [-127, 128] by the order of the bits, one instruction for each side: of negative floats the
   larger is the smaller as an unsigned number, and as signed numbers floats below 128 are below 128's bits. */
INLINE f32v bounded(f32v x) {
    uint32_t low[LANES];
    int32_t high[LANES];
    memcpy(low, &x, sizeof low);
    for (int i = 0; i < LANES; i++) low[i] = low[i] < 0xC2FE0000u ? low[i] : 0xC2FE0000u;
    memcpy(high, low, sizeof high);
    for (int i = 0; i < LANES; i++) high[i] = high[i] < 0x43000000 ? high[i] : 0x43000000;
    memcpy(&x, high, sizeof x);
    return x;
}

/* 2^x. From -126 to 128 within 1.2e-7 of it; below, not above 2^-126, and 0 from -127 on; infinity from 128
   on; anything for NaN. The polynomial was fitted to (2^f - 1) / f on [-1/2, 1/2] with its first
   coefficient held at ln 2, so that a decay near 1 is as good as its rounding. */
INLINE f32v exp2_f32(f32v x) {
    x = bounded(x);
    f32v shifted = x + 12582912.0f; /* rounds to a whole number */
    f32v f = x - (shifted - 12582912.0f);
    f32v q = 1.53211556e-4f * f + 1.33901613e-3f;
    q = q * f + 9.61852632e-3f;
    q = q * f + 5.55036217e-2f;
    q = q * f + 2.40226477e-1f;
    q = q * f + 6.93147181e-1f;
    f32v y = q * f + 1.0f;
    return (f32v)((i32v)y + ((i32v)shifted << 23));
}

/* softplus(x) = max(x, 0) + log1p(e), e = exp(-|x|), and its slope, the sigmoid. log1p(e) = 2 atanh(s) with
   s = e / (2 + e) <= 1/3, by a fitted odd polynomial (error 5e-9). */
INLINE f32v softplus(f32v x, f32v *slope) {
    f32v magnitude = (f32v)((i32v)x & 0x7fffffff);
    f32v e = exp2_f32(magnitude * -1.44269504f), s = e / (2.0f + e), square = s * s;
    f32v p = 2.80244691e-1f * square + 2.79991391e-1f;
    p = p * square + 4.00216992e-1f;
    p = p * square + 6.66664131e-1f;
    f32v log1p = p * (square * s) + 2.0f * s;
    i32v negative = x < 0.0f;
    if (slope) *slope = either_f32(negative, e, splat_f32(1.0f)) / (1.0f + e);
    return either_f32(negative, log1p, x + log1p); /* NaN for NaN */
}

INLINE f32v sigmoid(f32v x) {
    f32v e = exp2_f32((f32v)((i32v)x & 0x7fffffff) * -1.44269504f);
    return either_f32(x < 0.0f, e, splat_f32(1.0f)) / (1.0f + e);
}

/* Where a work item is, and the rows that a token of it needs. */
typedef struct {
    int64_t batch, group, channel, lanes; /* channel: the first of the tile, over all groups */
    const float *u, *delta, *z, *grad, *b, *c;
    f32v bias, d;
} tile_t;

INLINE const float *row(const float *base, const int64_t *strides, const tile_t *at) {
    return base ? base + at->batch * strides[0] + at->channel * strides[2] : NULL;
}

INLINE tile_t tile_at(const job_t *job, int64_t batch, int64_t group, int64_t tile) {
    tile_t at = {.batch = batch, .group = group, .channel = group * job->channels + tile * LANES};
    at.lanes = job->channels - tile * LANES < LANES ? job->channels - tile * LANES : LANES;
    at.u = row(job->u, job->us, &at), at.delta = row(job->delta, job->ds, &at);
    at.z = row(job->z, job->zs, &at), at.grad = row(job->grad, job->gs, &at);
    at.b = job->b + batch * job->bs[0] + group * job->bs[2];
    at.c = job->c + batch * job->cs[0] + group * job->cs[2];
    at.bias = job->bias ? load(job->bias + at.channel, 1, at.lanes) : splat_f32(0);
    at.d = job->d ? load(job->d + at.channel, 1, at.lanes) : splat_f32(0);
    return at;
}

/* The values of all n at one token: where they lie, or gathered. */
INLINE const float *values(const float *at, int64_t stride, int64_t n, float *gathered) {
    if (stride == 1) return at;
    for (int64_t i = 0; i < n; i++) gathered[i] = at[i * stride];
    return gathered;
}

/* Of the tokens of a chunk: the step, its slope, and what the state is given (before B). Apart from the loop
   over states, so that its long chains of dependent operations overlap. */
typedef struct {
    f32v delta[CHUNK], slope[CHUNK], u[CHUNK], written[CHUNK], y[CHUNK], grad[CHUNK];
} chunk_t;

INLINE void take_chunk(const job_t *job, const tile_t *at, int64_t start, int64_t size, int slopes, chunk_t *into) {
    for (int64_t k = 0; k < size; k++) {
        int64_t t = start + k;
        f32v x = load(at->delta + t * job->ds[1], job->ds[2], at->lanes) + at->bias;
        into->slope[k] = splat_f32(1.0f);
        into->delta[k] = job->softplus ? softplus(x, slopes ? &into->slope[k] : NULL) : x;
        into->u[k] = load(at->u + t * job->us[1], job->us[2], at->lanes);
        into->written[k] = into->delta[k] * into->u[k];
    }
}

/* The [channel, n] matrix of a tile as one vector for each n; zeros when absent. */
INLINE void take(const float *matrix, int64_t offset, int64_t n, int64_t lanes, f32v *into) {
    for (int64_t i = 0; i < n; i++) into[i] = matrix ? load(matrix + offset + i, n, lanes) : splat_f32(0);
}

INLINE void give(float *matrix, int64_t offset, int64_t n, int64_t lanes, const f32v *from) {
    for (int64_t i = 0; i < n; i++) store(matrix + offset + i, n, from[i], lanes);
}

INLINE void forward_tile(job_t *job, int64_t item, const int n) {
    int64_t group = item / job->tiles % job->groups, width = job->groups * job->channels;
    tile_t at = tile_at(job, item / job->tiles / job->groups, group, item % job->tiles);
    f32v h[n], a2[n];
    float some_b[n], some_c[n];
    int64_t corner = (at.batch * width + at.channel) * job->n;
    take(job->a2, at.channel * job->n, n, at.lanes, a2);
    take(job->initial, corner, n, at.lanes, h);
    for (int i = 0; i < n; i++) h[i] += 0.0f * a2[i]; /* a NaN in A shows, though exp2 hides it */
    chunk_t chunk;
    for (int64_t start = 0; start < job->length; start += CHUNK) {
        int64_t size = job->length - start < CHUNK ? job->length - start : CHUNK;
        take_chunk(job, &at, start, size, 0, &chunk);
        for (int64_t k = 0; k < size; k++) {
            const float *b = values(at.b + (start + k) * job->bs[1], job->bs[3], n, some_b);
            const float *c = values(at.c + (start + k) * job->cs[1], job->cs[3], n, some_c);
            f32v delta = chunk.delta[k], written = chunk.written[k], even = at.d * chunk.u[k], odd = splat_f32(0);
            _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
                h[i] = exp2_f32(delta * a2[i]) * h[i] + written * b[i];
                if (i % 2)
                    odd += h[i] * c[i];
                else
                    even += h[i] * c[i];
            }
            chunk.y[k] = even + odd;
        }
        for (int64_t k = 0; k < size; k++) {
            f32v y = chunk.y[k];
            if (at.z) {
                f32v z = load(at.z + (start + k) * job->zs[1], job->zs[2], at.lanes);
                y *= z * sigmoid(z);
            }
            store(job->out + (at.batch * job->length + start + k) * width + at.channel, 1, y, at.lanes);
        }
    }
    give(job->state, corner, n, at.lanes, h);
}

/* Adds to a row the n sums over channels. */
INLINE void add_sums(const f32v *v, int64_t n, float *into) {
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t lanes = n - i < LANES ? n - i : LANES;
        store(into + i, 1, sums_f32(v + i) + load(into + i, 1, lanes), lanes);
    }
}

/* A backward's memory: states at the start of every chunk, and all states and decays of one chunk. */
typedef struct {
    f32v *kept, *h, *a;
} memory_t;

INLINE void backward_tile(const job_t *job, int64_t block, tile_t at, memory_t memory, const int n) {
    const int padded = (n + LANES - 1) / LANES * LANES;
    int64_t width = job->groups * job->channels, length = job->length;
    int64_t corner = (at.batch * width + at.channel) * job->n;
    f32v a2[n], carried[n], da2[n], to_b[padded], to_c[padded];
    chunk_t chunk;
    double total[n][LANES];
    float some_b[n], some_c[n];
    f32v dd = splat_f32(0), dbias = splat_f32(0);
    memset(total, 0, sizeof total), memset(to_b, 0, sizeof to_b), memset(to_c, 0, sizeof to_c);
    take(job->a2, at.channel * job->n, n, at.lanes, a2);
    take(job->grad_state, corner, n, at.lanes, carried);

    f32v *h = memory.h;
    take(job->initial, corner, n, at.lanes, h);
    for (int64_t start = 0; start < length; start += CHUNK) {
        int64_t size = length - start < CHUNK ? length - start : CHUNK;
        memcpy(memory.kept + start / CHUNK * n, h, n * sizeof(f32v));
        take_chunk(job, &at, start, size, 0, &chunk);
        for (int64_t k = 0; k < size; k++) {
            const float *b = values(at.b + (start + k) * job->bs[1], job->bs[3], n, some_b);
            f32v delta = chunk.delta[k], written = chunk.written[k];
            _Pragma("GCC unroll 16") for (int i = 0; i < n; i++)
                h[i] = exp2_f32(delta * a2[i]) * h[i] + written * b[i];
        }
    }

    for (int64_t start = (length - 1) / CHUNK * CHUNK; start >= 0 && length; start -= CHUNK) {
        int64_t size = length - start < CHUNK ? length - start : CHUNK;
        memcpy(memory.h, memory.kept + start / CHUNK * n, n * sizeof(f32v));
        take_chunk(job, &at, start, size, 1, &chunk);
        for (int64_t k = 0; k < size; k++) {
            const float *b = values(at.b + (start + k) * job->bs[1], job->bs[3], n, some_b);
            const float *c = values(at.c + (start + k) * job->cs[1], job->cs[3], n, some_c);
            f32v *before = memory.h + k * n, *after = before + n, *a = memory.a + k * n;
            f32v delta = chunk.delta[k], written = chunk.written[k], y = at.d * chunk.u[k];
            _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
                a[i] = exp2_f32(delta * a2[i]);
                after[i] = a[i] * before[i] + written * b[i];
                y += after[i] * c[i];
            }
            chunk.y[k] = y;
        }
        for (int64_t k = 0; k < size; k++) {
            int64_t t = start + k, place = (at.batch * length + t) * width + at.channel;
            f32v g = at.grad ? load(at.grad + t * job->gs[1], job->gs[2], at.lanes) : splat_f32(0);
            if (at.z) {
                f32v z = load(at.z + t * job->zs[1], job->zs[2], at.lanes), gate = sigmoid(z);
                store(job->dz + place, 1, g * chunk.y[k] * gate * (1.0f + z * (1.0f - gate)), at.lanes);
                g *= z * gate;
            }
            chunk.grad[k] = g;
        }
        memset(da2, 0, sizeof da2);
        f32v dd_chunk = splat_f32(0), dbias_chunk = splat_f32(0);
        for (int64_t k = size - 1; k >= 0; k--) {
            int64_t t = start + k, place = (at.batch * length + t) * width + at.channel;
            f32v u = chunk.u[k], delta = chunk.delta[k], written = chunk.written[k], g = chunk.grad[k];
            const float *b = values(at.b + t * job->bs[1], job->bs[3], n, some_b);
            const float *c = values(at.c + t * job->cs[1], job->cs[3], n, some_c);
            const f32v *before = memory.h + k * n, *after = before + n, *a = memory.a + k * n;
            f32v by_b = splat_f32(0), by_a = splat_f32(0);
            _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
                f32v l = carried[i] + g * c[i];
                to_c[i] = g * after[i];
                to_b[i] = l * written;
                by_b += l * b[i];
                carried[i] = a[i] * l;
                f32v product = carried[i] * before[i];
                by_a += product * a2[i];
                da2[i] += product * delta;
            }
            f32v dx = (0.693147181f * by_a + u * by_b) * chunk.slope[k];
            store(job->du + place, 1, g * at.d + delta * by_b, at.lanes);
            store(job->ddelta + place, 1, dx, at.lanes);
            dd_chunk += g * u, dbias_chunk += dx;
            int64_t line = (((block * job->batch + at.batch) * length + t) * job->groups + at.group) * n;
            add_sums(to_b, n, job->db + line);
            add_sums(to_c, n, job->dc + line);
        }
        dd += dd_chunk, dbias += dbias_chunk;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < LANES; j++) total[i][j] += da2[i][j];
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < LANES; j++) da2[i][j] = (float)total[i][j];
    give(job->da2, corner, n, at.lanes, da2);
    give(job->dinitial, corner, n, at.lanes, carried);
    store(job->dd + at.batch * width + at.channel, 1, dd, at.lanes);
    store(job->dbias + at.batch * width + at.channel, 1, dbias, at.lanes);
}

static void forward(void *context, int64_t item) {
    job_t *job = context;
    if (job->n == 16)
        forward_tile(job, item, 16);
    else if (job->n == 8)
        forward_tile(job, item, 8);
    else
        forward_tile(job, item, job->n);
}

static void backward(void *context, int64_t item) {
    job_t *job = context;
    int64_t block = item % job->blocks, group = item / job->blocks % job->groups;
    int64_t chunks = job->length / CHUNK + 1, n = job->n;
    f32v *whole = aligned_memory((chunks + 2 * CHUNK + 1) * n * sizeof(f32v));
    if (!whole) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    memory_t memory = {whole, whole + chunks * n, whole + (chunks + CHUNK + 1) * n};
    for (int64_t tile = block; tile < job->tiles; tile += job->blocks) {
        tile_t at = tile_at(job, item / job->blocks / job->groups, group, tile);
        if (n == 16)
            backward_tile(job, block, at, memory, 16);
        else if (n == 8)
            backward_tile(job, block, at, memory, 8);
        else
            backward_tile(job, block, at, memory, n);
    }
    free(whole);
}

/* tensors in the order of job_t; sizes: batch, length, groups, channels of a group, n, softplus; strides of
   u, delta, z, grad (3 each), b and c (4 each). blocks > 0 asks for the backward, with that many partial sums
   of db and dc, which must be zero. Returns 1 when there is no memory. */
int selective_scan(void *const *tensors, const int64_t *sizes, const int64_t *strides, int64_t blocks,
                   int threads) {
    job_t job = {.failed = 0};
    memcpy(&job.u, tensors, 22 * sizeof(void *));
    memcpy(&job.batch, sizes, 6 * sizeof(int64_t));
    memcpy(job.us, strides, 20 * sizeof(int64_t));
    job.tiles = (job.channels + LANES - 1) / LANES, job.blocks = blocks;
    if (blocks)
        run_team(job.batch * job.groups * blocks, threads, backward, &job);
    else
        run_team(job.batch * job.groups * job.tiles, threads, forward, &job);
    return job.failed;
}
