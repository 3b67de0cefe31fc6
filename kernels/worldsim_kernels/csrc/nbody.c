/* Gravity of all pairs (solve/nbody.py has the equations), in float and in double. A tile of bodies stays in
   registers while all others pass; a body's pulls are added in the order of the bodies, so that the bits do not
   depend on how many threads share the tiles. */
#include "vector.h"

#define TILE 4 /* vectors of bodies that one pass holds */

#define REAL float
#define VEC f32v
#define VECU f32vu
#define LANES LANES_f32
#define MASK i32v
#define SELF int32_t
#define MAGIC 0x5f3759df
#define NEWTON 3
#define NAME(f) f##_f32
#include "nbody_body.h"

#undef REAL
#undef VEC
#undef VECU
#undef LANES
#undef MASK
#undef SELF
#undef MAGIC
#undef NEWTON
#undef NAME
#define REAL double
#define VEC f64v
#define VECU f64vu
#define LANES LANES_f64
#define MASK i64v
#define SELF int64_t
#define MAGIC 0x5fe6eb50c7b537a9
#define NEWTON 4
#define NAME(f) f##_f64
#include "nbody_body.h"
