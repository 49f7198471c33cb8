/* Matrix products in tiles of registers: a tile of accumulators runs along the inner dimension once, and what becomes of
 * it is done while it is still at hand. So gradients never reach memory, and ReLU costs no pass of its own.
 */
enum { TILE = MR * NV > MR1 ? MR * NV : MR1 };

/* What becomes of a finished tile. */
enum { PLAIN, RELU, MASK, ADD, UPDATE };
typedef struct {
    float *out;          /* where the tile goes; for UPDATE, what earlier chunks added up (or NULL) */
    ptrdiff_t ld;        /* row length of out, active and weights */
    const float *active; /* MASK: the activations whose sign says where ReLU let the signal through */
    Weights weights;     /* UPDATE: what the gradient is for, and by which rule */
    const Rule *rule;
} Target;

INLINE void finish(int kind, vec acc, const Target *t, ptrdiff_t at) {
    const vec zero = {0};
    if (kind == PLAIN) AT(t->out + at) = acc;
    if (kind == RELU) AT(t->out + at) = KEEP_IF(~(acc < zero), acc); /* NaN passes: divergence must show */
    if (kind == MASK) AT(t->out + at) = KEEP_IF(AT(t->active + at) > zero, acc);
    if (kind == ADD) AT(t->out + at) += acc;
}

/* The gradient of a tile whose first vector stands at `at`, whole with what earlier chunks added up, into the rule. */
INLINE void learn(const vec *acc, int mr, int nv, const Target *t, ptrdiff_t at) {
    _Alignas(VL * 4) vec g[TILE];
    for (int m = 0; m < mr; m++)
        for (int n = 0; n < nv; n++) {
            g[m * nv + n] = acc[m * nv + n];
            if (t->out) g[m * nv + n] += AT(t->out + at + m * t->ld + n * VL);
        }
    update(t->rule, g, mr, nv, &t->weights, at, t->ld);
}

/* One tile of sum_k A(m, k) B(k, n), where A(m, k) is a[m][k], or a[k][m] if turned. */
INLINE void tile(int kind, int turned, int mr, int nv, ptrdiff_t m0, ptrdiff_t n0, ptrdiff_t K,
                 const float *const *a, const float *b, ptrdiff_t ldb, const Target *t) {
    vec acc[TILE];
    const float *row[MR1];
    for (int i = 0; i < mr * nv; i++) acc[i] = (vec){0};
    if (!turned)
        for (int m = 0; m < mr; m++) row[m] = a[m0 + m];
    for (ptrdiff_t k = 0; k < K; k++) {
        const float *bk = b + k * ldb + n0, *ak = turned ? a[k] + m0 : 0;
        vec bv[NV];
        for (int n = 0; n < nv; n++) bv[n] = AT(bk + n * VL);
        for (int m = 0; m < mr; m++)
            for (int n = 0; n < nv; n++) acc[m * nv + n] += (turned ? ak[m] : row[m][k]) * bv[n];
    }
    const ptrdiff_t at = m0 * t->ld + n0;
    if (kind == UPDATE) learn(acc, mr, nv, t, at);
    for (int m = 0; m < mr; m++)
        for (int n = 0; n < nv; n++) finish(kind, acc[m * nv + n], t, at + m * t->ld + n * VL);
}

/* All rows of a panel nv vectors wide: full tiles, then one tile for the rows left over. */
INLINE void panel(int kind, int turned, int nv, ptrdiff_t M, ptrdiff_t n0, ptrdiff_t K, const float *const *a,
                  const float *b, ptrdiff_t ldb, const Target *t) {
    const int mr = nv == 1 ? MR1 : MR;
    ptrdiff_t m = 0;
    for (; m + mr <= M; m += mr) tile(kind, turned, mr, nv, m, n0, K, a, b, ldb, t);
    if (nv == 1 && M - m >= 8) tile(kind, turned, 8, nv, m, n0, K, a, b, ldb, t), m += 8;
    if (nv == 1 && M - m >= 6) tile(kind, turned, 6, nv, m, n0, K, a, b, ldb, t), m += 6;
    switch (M - m) {
    case 5: tile(kind, turned, 5, nv, m, n0, K, a, b, ldb, t); break;
    case 4: tile(kind, turned, 4, nv, m, n0, K, a, b, ldb, t); break;
    case 3: tile(kind, turned, 3, nv, m, n0, K, a, b, ldb, t); break;
    case 2: tile(kind, turned, 2, nv, m, n0, K, a, b, ldb, t); break;
    case 1: tile(kind, turned, 1, nv, m, n0, K, a, b, ldb, t); break;
    }
}

/* name(M, N, K, a, b, ldb, target): A is M x K, B is K x N with rows ldb floats apart, and N is in whole vectors. */
#define PRODUCT(name, kind, turned)                                                                           \
    static void name(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const float *const *a, const float *b,            \
                     ptrdiff_t ldb, Target t) {                                                               \
        ptrdiff_t n = 0;                                                                                      \
        for (; n + NV * VL <= N; n += NV * VL) panel(kind, turned, NV, M, n, K, a, b, ldb, &t);               \
        for (; n + 2 * VL <= N; n += 2 * VL) panel(kind, turned, 2, M, n, K, a, b, ldb, &t);                  \
        for (; n < N; n += VL) panel(kind, turned, 1, M, n, K, a, b, ldb, &t);                                \
    }
PRODUCT(product, PLAIN, 0)
PRODUCT(product_relu, RELU, 0)
PRODUCT(product_mask, MASK, 0)
PRODUCT(product_add, ADD, 0)
PRODUCT(product_update, UPDATE, 0)
PRODUCT(turned, PLAIN, 1)
PRODUCT(turned_mask, MASK, 1)
PRODUCT(turned_add, ADD, 1)
PRODUCT(turned_update, UPDATE, 1)
