/* The adaptive loop of an explicit Runge-Kutta method. A generated source defines

     SINGLE              1 for states of floats, 0 of doubles
     STATE, ARGUMENTS    numbers of a state, and of a row's arguments
     STAGES, BETWEEN     slopes of a step, and with those for the interpolant alone
     REUSE               whether the last slope is the first of the next step
     ADAPTIVE            whether there is an error estimate and step control

   includes this file, and then defines field, attempt, look_into and between, which are declared here.

   A lane holds a row with its own time and step; one whose row has ended takes the next row. Every operation
   and its order are those of the loop in torch, so that the bits are equal for fields of + - * / and roots;
   compile without contraction of a * b + c. */
#include "lanes.h"

enum { RUNNING = -1, DONE = 0, MAX_STEPS = 2, STEP_TOO_SMALL = 3, NOT_FINITE = 4 };

INLINE f64v floor_f64(f64v x) {
    for (int i = 0; i < LANES; i++) x[i] = floor(x[i]);
    return x;
}

INLINE f64v lookup(const double *table, i64v place) {
#ifdef __AVX512F__
    return (f64v)_mm512_i64gather_pd((__m512i)place, table, 8);
#else
    f64v found;
    for (int i = 0; i < LANES; i++) found[i] = table[place[i]];
    return found;
#endif
}

/* What the generated source defines. */
static void field(real_v t, const real_v *restrict y, const real_v *restrict arguments,
                  const real *restrict data, real_v *restrict slope);
/* From y at t over h, slope[0] known if REUSE: the other slopes, the end, the error estimate if ADAPTIVE. */
static void attempt(f64v t, f64v h, const real_v *y, const real_v *arguments, const real *data,
                    real_v (*slope)[STATE], real_v *end, real_v *error);
/* The slopes that the interpolant alone needs. */
static void look_into(f64v t, f64v h, const real_v *y, const real_v *arguments, const real *data,
                      real_v (*slope)[STATE]);
/* The state at t + theta h. */
static void between(f64v theta, f64v h, const real_v *y, real_v (*slope)[STATE], const real_v *end, real_v *at);

typedef struct {
    int64_t rows, times, max_steps, capacity, exact, estimate, threads;
    double error_order, before, now, last, safety, shrink, grow, smallest, largest;
    const double *mantissas;   /* [64], at which a level begins */
    const double *t0, *t1;     /* [row] */
    const double *rtol, *atol; /* [row], if ADAPTIVE */
    const double *first;       /* [row], if ADAPTIVE and not estimate: the first step; else the constant one */
    const double *wanted;      /* [row, times] */
    const real *y0, *arguments, *data;
    double *t;
    real *y;
    int8_t *status;
    int64_t *accepted, *rejected;
    real *saved;   /* [row, times, STATE] */
    double *step_t; /* [row, capacity] */
    real *step_y;   /* [row, capacity, STATE] */
    double *size;   /* [row], for our own use */
    real *slope;    /* [row, STATE], the same, if REUSE */
    int64_t next;
    double begins[128], follows[128]; /* the level at which each 128th of an octave begins, and its next one */
} call_t;

#define LEVELS 64
#define TINY 0x1p-200

/* Equal 128ths are narrower than levels, so each has at most one beginning of a level inside. */
static void prepare_levels(call_t *call) {
    int found = 0;
    for (int i = 0; i < 128; i++) {
        double low = 0.5 + i / 256.0;
        while (found < LEVELS - 1 && call->mantissas[found + 1] <= low) found++;
        call->begins[i] = found;
        call->follows[i] = found + 1 < LEVELS ? call->mantissas[found + 1] : INFINITY;
    }
}

/* The largest integer L with 2^(L / 64) <= ratio. */
INLINE f64v level(const call_t *call, f64v ratio) {
    ratio = max_f64(min_f64(ratio, splat_f64(1 / TINY)), splat_f64(TINY));
    i64v bits = (i64v)ratio, octave = (bits >> 52) - 1023, part = (bits >> 45) & 127;
    f64v mantissa = (f64v)((bits & 0xfffffffffffff) | 0x3fe0000000000000);
    f64v within = lookup(call->begins, part);
    within += choose_f64(mantissa >= lookup(call->follows, part), splat_f64(1), splat_f64(0));
    return __builtin_convertvector(octave, f64v) * LEVELS + within;
}

/* 2^(L / 64) for the floor L of exponent. */
INLINE f64v power(const call_t *call, f64v exponent) {
    f64v whole = floor_f64(exponent), octave = floor_f64(whole / LEVELS);
    i64v within = __builtin_convertvector(whole - octave * LEVELS, i64v) & (LEVELS - 1);
    octave = max_f64(min_f64(octave, splat_f64(1022)), splat_f64(-1022));
    i64v scale = (__builtin_convertvector(octave, i64v) + 1 + 1023) << 52;
    return lookup(call->mantissas, within) * (f64v)scale;
}

INLINE i64v all_finite(const real_v *x) {
    truth_v all = (truth_v){0} == 0;
    for (int j = 0; j < STATE; j++) all &= (x[j] - x[j]) == 0;
    return WIDEN_TRUTH(all);
}

/* Root mean square of value over scale, added in halves; 0 over anything is 0. */
INLINE f64v norm(const real_v *value, const real_v *scale) {
    f64v terms[STATE];
    for (int j = 0; j < STATE; j++) {
        f64v part = WIDEN(choose(value[j] == 0, splat(0), value[j] / scale[j]));
        terms[j] = part * part;
    }
    int count = STATE;
    while (count > 1) {
        int half = count / 2;
        for (int j = 0; j < half; j++) terms[j] = terms[j] + terms[half + j];
        if (count % 2) terms[half] = terms[count - 1];
        count = half + count % 2;
    }
    return root_f64(terms[0] / STATE);
}

/* Rows in lanes. */
typedef struct {
    f64v t, t1, sign, target, size, left, time, before, last, rtol, atol;
    i64v running, slowed, accepted, rejected;
    real_v y[STATE], slope[STATE], arguments[ARGUMENTS];
    int64_t row[LANES], wanted[LANES];
} lanes_t;

#if ADAPTIVE
/* Hairer, Norsett, Wanner 1993, II.4, "starting step size". */
INLINE f64v first_step(const call_t *call, const lanes_t *l) {
    real_v scale[STATE], at[STATE], ahead[STATE];
    real_v rtol = NARROW(l->rtol), atol = NARROW(l->atol);
    for (int j = 0; j < STATE; j++) scale[j] = atol + rtol * magnitude(l->y[j]);
    f64v d0 = norm(l->y, scale), d1 = norm(l->slope, scale);
    i64v small = (d0 < 1e-5) | (d1 < 1e-5);
    f64v h0 = choose_f64(small, splat_f64(1e-6), 0.01 * d0 / choose_f64(small, splat_f64(1), d1));
    h0 = min_f64(h0, abs_f64(l->t1 - l->t));
    f64v h = l->sign * h0;
    for (int j = 0; j < STATE; j++) at[j] = l->y[j] + NARROW(h) * l->slope[j];
    field(NARROW(l->t + h), at, l->arguments, call->data, ahead);
    for (int j = 0; j < STATE; j++) ahead[j] = ahead[j] - l->slope[j];
    f64v d2 = norm(ahead, scale) / choose_f64(h0 > 0, h0, splat_f64(1));
    f64v steepest = choose_f64(d2 == d2, choose_f64(d1 >= d2, d1, d2), d1);
    i64v flat = ~(steepest > 1e-15) | (steepest == INFINITY);
    f64v root = power(call, level(call, 0.01 / choose_f64(flat, splat_f64(1), steepest)) / call->error_order);
    f64v h1 = choose_f64(flat, max_f64(splat_f64(1e-6), h0 * 1e-3), root);
    /* An infinite slope makes h0 zero, and a step of zero would never fail. */
    return choose_f64(h0 > 0, min_f64(100 * h0, h1), h1);
}
#endif

/* The first slopes and steps of a register of rows. */
static void begin(void *pointer, int64_t block) {
    call_t *call = pointer;
    lanes_t l = {0};
    for (int i = 0; i < LANES; i++) {
        int64_t row = block * LANES + i;
        if (row >= call->rows) row = call->rows - 1;
        l.row[i] = row;
        l.t[i] = call->t0[row], l.t1[i] = call->t1[row];
        l.sign[i] = l.t1[i] >= l.t[i] ? 1.0 : -1.0;
        for (int j = 0; j < STATE; j++) l.y[j][i] = call->y0[row * STATE + j];
        for (int j = 0; j < ARGUMENTS; j++) l.arguments[j][i] = call->arguments[row * ARGUMENTS + j];
#if ADAPTIVE
        l.rtol[i] = call->rtol[row], l.atol[i] = call->atol[row];
#endif
    }
    i64v good = all_finite(l.y);
#if REUSE || ADAPTIVE
    field(NARROW(l.t), l.y, l.arguments, call->data, l.slope);
#endif
#if REUSE
    good &= all_finite(l.slope);
#endif
    f64v size = {0};
#if ADAPTIVE
    if (call->estimate) size = first_step(call, &l);
    else
        for (int i = 0; i < LANES; i++) size[i] = call->first[l.row[i]];
    size = min_f64(size, abs_f64(l.t1 - l.t));
    size = min_f64(max_f64(size, splat_f64(call->smallest)), splat_f64(call->largest));
#endif
    for (int i = 0; i < LANES; i++) {
        int64_t row = block * LANES + i;
        if (row >= call->rows) break;
        call->status[row] = !good[i] ? NOT_FINITE : l.t[i] == l.t1[i] ? DONE : RUNNING;
        call->size[row] = size[i];
#if REUSE
        for (int j = 0; j < STATE; j++) call->slope[row * STATE + j] = l.slope[j][i];
#endif
    }
}

static double wanted_time(const call_t *call, int64_t row, int64_t number) {
    return number < call->times ? call->wanted[row * call->times + number] : NAN;
}

/* The next time at which lane i must end a step, and the number of constant steps to it. */
static void aim(const call_t *call, lanes_t *l, int i) {
    double target = l->t1[i];
    if ((call->exact || !ADAPTIVE) && !isnan(l->time[i])) target = l->time[i];
    l->target[i] = target;
#if !ADAPTIVE
    /* The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1. */
    double steps = ceil(fabs(target - l->t[i]) / call->first[l->row[i]] * (1 - 1e-9));
    l->left[i] = steps < 1 ? 1 : steps;
#endif
}

static void keep(const call_t *call, int64_t row, int64_t accepted, double t, const real_v *y, int i) {
    if (accepted >= call->capacity) return;
    int64_t place = row * call->capacity + accepted;
    call->step_t[place] = t;
    for (int j = 0; j < STATE; j++) call->step_y[place * STATE + j] = y[j][i];
}

/* The row of lane i as it ended. */
static void finish(const call_t *call, const lanes_t *l, int i, int status) {
    int64_t row = l->row[i];
    call->t[row] = l->t[i];
    for (int j = 0; j < STATE; j++) call->y[row * STATE + j] = l->y[j][i];
    call->status[row] = (int8_t)status;
    call->accepted[row] = l->accepted[i];
    call->rejected[row] = l->rejected[i];
}

/* Puts the next row that has anything to solve into lane i. */
static void take(call_t *call, lanes_t *l, int i) {
    for (;;) {
        int64_t row = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
        l->running[i] = 0;
        if (row >= call->rows) {
            l->target[i] = l->t[i], l->size[i] = 0;
            return;
        }
        l->row[i] = row, l->wanted[i] = 0;
        l->t[i] = call->t0[row], l->t1[i] = call->t1[row];
        l->sign[i] = l->t1[i] >= l->t[i] ? 1.0 : -1.0;
        l->size[i] = call->size[row];
        l->before[i] = l->last[i] = 0;
        l->slowed[i] = l->accepted[i] = l->rejected[i] = 0;
        for (int j = 0; j < STATE; j++) l->y[j][i] = call->y0[row * STATE + j];
        for (int j = 0; j < ARGUMENTS; j++) l->arguments[j][i] = call->arguments[row * ARGUMENTS + j];
#if REUSE
        for (int j = 0; j < STATE; j++) l->slope[j][i] = call->slope[row * STATE + j];
#endif
#if ADAPTIVE
        l->rtol[i] = call->rtol[row], l->atol[i] = call->atol[row];
#endif
        while ((l->time[i] = wanted_time(call, row, l->wanted[i])) == l->t[i]) {
            int64_t place = row * call->times + l->wanted[i]++;
            memcpy(call->saved + place * STATE, call->y0 + row * STATE, STATE * sizeof(real));
        }
        keep(call, row, 0, l->t[i], l->y, i);
        if (call->status[row] == RUNNING) {
            l->running[i] = -1;
            aim(call, l, i);
            return;
        }
        finish(call, l, i, call->status[row]);
    }
}

#if ADAPTIVE
/* Which lanes accept their step; sets the size of the next. */
INLINE i64v control(const call_t *call, lanes_t *l, i64v good, const real_v *end, const real_v *error) {
    real_v scale[STATE], rtol = NARROW(l->rtol), atol = NARROW(l->atol);
    for (int j = 0; j < STATE; j++) {
        real_v x = magnitude(l->y[j]), y = magnitude(end[j]);
        scale[j] = atol + rtol * choose(y > x, y, x);
    }
    f64v found = norm(error, scale);
    good &= (found - found) == 0;
    i64v accept = l->running & good & (found <= 1);
    f64v now = level(call, choose_f64(good, found, splat_f64(1)));
    f64v exponent = call->before * l->before - call->now * now - call->last * l->last;
    f64v factor = call->safety * power(call, exponent / call->error_order);
    factor = min_f64(max_f64(factor, splat_f64(call->shrink)), splat_f64(call->grow));
    factor = choose_f64(accept & ~l->slowed, factor, min_f64(factor, splat_f64(1)));
    factor = choose_f64(good, factor, splat_f64(0.25));
    /* A step cut short by its target says nothing against the size that was proposed before. */
    f64v tried = min_f64(l->size, abs_f64(l->target - l->t)), size = tried * factor;
    size = choose_f64(accept & (tried < l->size), max_f64(l->size, size), size);
    size = min_f64(size, splat_f64(call->largest));
    f64v bound = splat_f64(call->smallest);
    size = choose_f64(size < bound, choose_f64(tried > bound, bound, size), size);
    l->size = choose_f64(l->running, size, l->size);
    l->slowed = ~accept;
    l->last = choose_f64(accept, l->before, l->last);
    l->before = choose_f64(accept, now, l->before);
    return accept;
}
#endif

/* The saved times that lie in accepted steps. */
static __attribute__((noinline)) void save(const call_t *call, lanes_t *l, i64v accept, f64v ahead, f64v h,
                                           real_v (*slope)[STATE], const real_v *end) {
    real_v at[STATE];
    int looked = 0;
    for (;;) {
        i64v due = accept & (l->sign * (l->time - ahead) <= 0), inside = due & (l->time != ahead);
        if (!any(due)) return;
        if (any(inside)) {
            if (BETWEEN > STAGES && !looked++) look_into(l->t, h, l->y, l->arguments, call->data, slope);
            between((l->time - l->t) / h, h, l->y, slope, end, at);
        }
        for (int i = 0; i < LANES; i++) {
            if (!due[i]) continue;
            real *to = call->saved + (l->row[i] * call->times + l->wanted[i]) * STATE;
            for (int j = 0; j < STATE; j++) to[j] = inside[i] ? at[j][i] : end[j][i];
            l->time[i] = wanted_time(call, l->row[i], ++l->wanted[i]);
        }
    }
}

static void solve_rows(void *pointer, int64_t member) {
    call_t *call = pointer;
    lanes_t l = {0};
    (void)member;
    for (int i = 0; i < LANES; i++) take(call, &l, i);
    real_v slope[BETWEEN][STATE], end[STATE], error[STATE];
    while (any(l.running)) {
        f64v gap = abs_f64(l.target - l.t);
#if ADAPTIVE
        f64v size = l.size;
        i64v last = size * (1 + 1e-9) >= gap;
#else
        f64v size = gap / max_f64(l.left, splat_f64(1));
        i64v last = l.left <= 1;
#endif
        f64v ahead = choose_f64(last, l.target, l.t + l.sign * size);
        ahead = choose_f64(l.running, ahead, l.t);
        f64v h = ahead - l.t;
#if REUSE
        for (int j = 0; j < STATE; j++) slope[0][j] = l.slope[j];
#endif
        attempt(l.t, h, l.y, l.arguments, call->data, slope, end, error);
        i64v fine = all_finite(end);
#if REUSE
        fine &= all_finite(slope[STAGES - 1]);
#endif
#if ADAPTIVE
        i64v accept = control(call, &l, fine, end, error), missed = l.running & ~accept;
        i64v stuck = missed & ((l.t + l.sign * l.size == l.t) | (l.size < call->smallest));
#else
        i64v accept = l.running & fine, missed = l.running & ~accept, stuck = missed;
#endif
        l.accepted -= accept, l.rejected -= missed;
        if (call->times && any(accept & (l.sign * (l.time - ahead) <= 0)))
            save(call, &l, accept, ahead, h, slope, end);
        truth_v mask = NARROW_TRUTH(accept);
        l.t = choose_f64(accept, ahead, l.t);
        for (int j = 0; j < STATE; j++) l.y[j] = choose(mask, end[j], l.y[j]);
#if REUSE
        for (int j = 0; j < STATE; j++) l.slope[j] = choose(mask, slope[STAGES - 1][j], l.slope[j]);
#endif
        if (call->capacity)
            for (int i = 0; i < LANES; i++)
                if (accept[i]) keep(call, l.row[i], l.accepted[i], l.t[i], l.y, i);
        i64v arrived = accept & (l.t == l.target);
#if !ADAPTIVE
        l.left = l.left - choose_f64(accept, splat_f64(1), splat_f64(0));
#endif
        i64v over = l.running & (l.accepted + l.rejected >= call->max_steps);
        if (!any(arrived | over | stuck)) continue;
        for (int i = 0; i < LANES; i++) {
            if (!(arrived[i] | over[i] | stuck[i])) continue;
            if (accept[i] && l.t[i] == l.t1[i]) finish(call, &l, i, DONE);
            else if (over[i]) finish(call, &l, i, MAX_STEPS);
            else if (stuck[i]) finish(call, &l, i, fine[i] ? STEP_TOO_SMALL : NOT_FINITE);
            else {
                aim(call, &l, i);
                continue;
            }
            take(call, &l, i);
        }
    }
}

/* Solves every row. */
void solve(call_t *call) {
    prepare_levels(call);
    call->next = 0;
    run_team((call->rows + LANES - 1) / LANES, (int)call->threads, begin, call);
    run_team(call->threads, (int)call->threads, solve_rows, call);
}

/* slope [row, STATE] of the field at t [row], y [row, STATE]. */
void evaluate(int64_t rows, const double *t, const real *y, const real *arguments, const real *data, real *slope) {
    for (int64_t first = 0; first < rows; first += LANES) {
        f64v time = {0};
        real_v at[STATE], given[ARGUMENTS], found[STATE];
        int count = rows - first < LANES ? (int)(rows - first) : LANES;
        for (int i = 0; i < LANES; i++) {
            int64_t row = first + (i < count ? i : 0);
            time[i] = t[row];
            for (int j = 0; j < STATE; j++) at[j][i] = y[row * STATE + j];
            for (int j = 0; j < ARGUMENTS; j++) given[j][i] = arguments[row * ARGUMENTS + j];
        }
        field(NARROW(time), at, given, data, found);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < STATE; j++) slope[(first + i) * STATE + j] = found[j][i];
    }
}
