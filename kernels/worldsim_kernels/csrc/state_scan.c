/* S_t = (diag(w_t) + b_t a_t^T) S_{t-1} + k_t v_t^T,  o_t = scale S_t^T q_t  (w = e^g), and its gradients.

   The columns of S are independent of one another, so the work is cut into (sequence, head, tile of columns).
   A tile is at most four vectors wide. Blocks of tokens are first packed from any strides into aligned
   scratch, keys padded with zeros: a padded row of S stays zero. Without a low-rank term a few rows of S stay
   in registers over all tokens of a block; with one, S_{t-1}^T a_t must be whole before S_t, so each token
   makes one pass over S in the first-level cache, which also gathers S_t^T a_{t+1}. */
#include "vector.h"

typedef struct {
    char *data; /* NULL when absent */
    int64_t stride[4];
} tensor_t;

/* Mirrored in scan_native.py. Sequence n is batch row n with all tokens, or with offsets the tokens
   offsets[n] to offsets[n + 1] of row 0. */
typedef struct {
    int64_t sequences, heads, keys, values, length, width, group, threads;
    int64_t head_gate; /* g is one number for all keys */
    double scale;
    const int64_t *offsets;
    tensor_t q, k, v, g, a, b, bonus, initial, output, state;
    tensor_t d_output, d_state, dq, dk, dv, dg, da, db, d_bonus, d_initial;
} call_t;

typedef struct {
    const call_t *call;
    int failed;
} run_t;

enum { BLOCK = 32, CHECKPOINTS = 2048 };
enum { UNREAD, AFTER, BEFORE }; /* when the output is read: never, from S_t, from S_{t-1} */

#define INLINE static inline __attribute__((always_inline))
/* What is copied into each of its many callers costs seconds of compilation and gains nothing. */
#define NOINLINE static __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")

static void sequence_of(const call_t *c, int64_t n, int64_t *row, int64_t *start, int64_t *end) {
    *row = c->offsets ? 0 : n;
    *start = c->offsets ? c->offsets[n] : 0;
    *end = c->offsets ? c->offsets[n + 1] : c->length;
}

static int64_t up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

#ifdef __AVX512F__
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (i32x16){__VA_ARGS__})
#endif
/* The sums of sixteen vectors in one: each step folds two vectors into one that holds half of both. */
static inline f32x16 sum_sixteen(const f32x16 *x) {
    f32x16 y[16];
    for (int i = 0; i < 8; i++)
        y[i] = SHUFFLE(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        y[i] = SHUFFLE(y[i], y[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(y[i], y[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        y[i] = SHUFFLE(y[i], y[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(y[i], y[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(y[0], y[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(y[0], y[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
#endif

/* One register. A vector type that is wider than the registers is legal, but gcc then keeps it in memory: the
   sixteen floats of vector.h made this file five to fifteen times slower when compiled for AVX2 (gcc 12). */
#if defined(__AVX512F__)
enum { REGISTER = 64, ACCUMULATORS = 16 };
#elif defined(__AVX__)
enum { REGISTER = 32, ACCUMULATORS = 8 };
#else
enum { REGISTER = 16, ACCUMULATORS = 8 };
#endif
typedef float floats __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef float floats_anywhere __attribute__((vector_size(REGISTER), aligned(4)));
typedef double doubles __attribute__((vector_size(REGISTER), aligned(REGISTER)));
typedef double doubles_anywhere __attribute__((vector_size(REGISTER), aligned(8)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x2 __attribute__((vector_size(16)));

int state_scan_register(void) { return REGISTER; }

#define real float
#define vec floats
#define vecu floats_anywhere
#define quarter f32x4
#define FLOATS 1
#define FN(name) name##_f32
#include "state_scan_body.h"
#undef real
#undef vec
#undef vecu
#undef quarter
#undef FLOATS
#undef FN
#define real double
#define vec doubles
#define vecu doubles_anywhere
#define quarter f64x2
#define FLOATS 0
#define FN(name) name##_f64
#include "state_scan_body.h"
