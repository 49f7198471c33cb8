/* Vectors as long as the processor's, in the compiler's own notation: a + b, a < b and so on act on every lane, and
 * nothing here names an instruction. What the notation lacks stands below: choosing by a mask, the square root, exp and
 * tanh, sums across lanes, and turning a matrix.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* VL: lanes of a vector. MR x NV: the largest tile of accumulators (rows x vectors) that fits in the registers; MR1:
 * the rows of a tile one vector wide. */
#if defined(__AVX512F__)
enum { VL = 16, MR = 6, NV = 4, MR1 = 16 };
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX__)
enum { VL = 8, MR = 6, NV = 2, MR1 = 12 };
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7}
#else
enum { VL = 4, MR = 4, NV = 4, MR1 = 16 };
#define PLACES {0, 1, 2, 3}
#endif

typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef double widevec __attribute__((vector_size(VL * 8), aligned(8)));
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(vec *)(p))
#ifdef __clang__
#define UNROLLED /* clang sees for itself what it should unroll, and told to, it spills everything */
#else
#define UNROLLED _Pragma("GCC unroll 32") /* else gcc keeps a place in memory for an array of accumulators */
#endif
#if defined(__x86_64__) && !defined(__clang__) /* gcc would rather load a vector anew for each multiplication */
#define LOADED_ONCE(v) __asm__("" : "+v"(v))
#else
#define LOADED_ONCE(v)
#endif
#define KEEP_IF(mask, v) ((vec)((ivec)(v) & (mask)))

INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

INLINE vec relu(vec v) { /* NaN passes: divergence must show */
    const vec zero = {0};
    return KEEP_IF(~(v < zero), v);
}

INLINE vec root(vec v) { /* compilers make one instruction of it */
    for (int j = 0; j < VL; j++) v[j] = sqrtf(v[j]);
    return v;
}

/* exp(x) for x <= 0, to about one unit in the last place: x = n ln 2 + r, a polynomial in r, n into the exponent. */
INLINE vec vexp(vec x) {
    const vec low = (vec){0} - 87.0f;
    x = pick(x < low, low, x);
    vec n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, ivec), vec);
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.0f / 720 + r * (1.0f / 5040);
    p = 1.0f / 120 + r * p;
    p = 1.0f / 24 + r * p;
    p = 1.0f / 6 + r * p;
    p = 0.5f + r * p;
    p = 1.0f + r * (1.0f + r * p);
    return p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

/* tanh(x): (1 - e) / (1 + e) with e = exp(-2|x|); near 0, where that cancels, an odd polynomial (Moshier's Cephes). */
INLINE vec vtanh(vec x) {
    const vec zero = {0}, size = pick(x < zero, -x, x), square = x * x, e = vexp(-2.0f * size);
    vec p = -5.70498872745e-3f * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const vec far = (1.0f - e) / (1.0f + e);
    return pick(size < zero + 0.625f, x + x * square * p, pick(x < zero, -far, far));
}

/* Lane j of the result is lane from[j] of a, or lane from[j] - VL of b. */
INLINE vec mixed(vec a, vec b, ivec from) {
#ifdef __clang__
    vec out;
    for (int j = 0; j < VL; j++) out[j] = from[j] < VL ? a[from[j]] : b[from[j] - VL];
    return out;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

/* Where pairs of rows at distance `by` exchange the halves that are not in place: the lanes that the first one gets; of
 * the second one they are `by` further. */
INLINE ivec halves(int by) {
    const ivec place = PLACES;
    return place + (((place & by) != 0) & (VL - by));
}

/* One step of turning a square of vectors. */
INLINE void exchange(vec *square, int by) {
    for (int r = 0; r < VL; r++)
        if (!(r & by)) {
            const vec a = square[r], b = square[r + by];
            square[r] = mixed(a, b, halves(by)), square[r + by] = mixed(a, b, halves(by) + by);
        }
}

/* The same where rows are only wanted summed: half of them are left. */
INLINE void fold(vec *square, int by) {
    for (int r = 0; r < by; r++)
        square[r] = mixed(square[r], square[r + by], halves(by)) + mixed(square[r], square[r + by], halves(by) + by);
}

/* Lane j of the result is the sum of the lanes of square[j]. */
INLINE vec totals(vec *square) {
    if (VL > 8) fold(square, 8);
    if (VL > 4) fold(square, 4);
    fold(square, 2);
    fold(square, 1);
    return square[0];
}

INLINE float total(vec v) {
    vec square[VL] = {v};
    return totals(square)[0];
}

/* to[j][i] = from[i][j], a square of vectors at a time. */
static void transpose(int rows, int columns, const float *from, ptrdiff_t ldfrom, float *to, ptrdiff_t ldto) {
    for (int i = 0; i < rows; i += VL)
        for (int j = 0; j < columns; j += VL) {
            vec square[VL];
            for (int r = 0; r < VL; r++) square[r] = i + r < rows ? AT(from + (i + r) * ldfrom + j) : (vec){0};
            exchange(square, 1);
            exchange(square, 2);
            if (VL > 4) exchange(square, 4);
            if (VL > 8) exchange(square, 8);
            for (int r = 0; r < VL && j + r < columns; r++) AT(to + (j + r) * ldto + i) = square[r];
        }
}

/* Denormal numbers slow a core a hundredfold, and what a rule remembers of a dead unit decays through all of them. */
#if defined(__SSE__)
#define FLUSH_DENORMALS() unsigned saved = __builtin_ia32_stmxcsr(); __builtin_ia32_ldmxcsr(saved | 0x8040)
#define RESTORE_DENORMALS() __builtin_ia32_ldmxcsr(saved)
#else
#define FLUSH_DENORMALS()
#define RESTORE_DENORMALS()
#endif
