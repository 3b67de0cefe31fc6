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

/* Vectors of the state that stay in registers, of which AVX-512 has 32 and the others 16. */
enum { ACCUMULATORS = REGISTER == 64 ? 16 : 8 };
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x2 __attribute__((vector_size(16)));

int state_scan_register(void) { return REGISTER; }

#define real float
#define vec f32v
#define vecu f32vu
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
#define vec f64v
#define vecu f64vu
#define quarter f64x2
#define FLOATS 0
#define FN(name) name##_f64
#include "state_scan_body.h"
