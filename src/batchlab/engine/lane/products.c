/* Matrix products in tiles of registers: a tile of accumulators runs along the inner dimension once, and what becomes
 * of it is done while it is still at hand. So ReLU costs no pass of its own, and gradients need no room.
 */
enum { TILE = MR * NV > MR1 ? MR * NV : MR1 };

/* What becomes of a finished tile. */
enum { PLAIN, RELU, MASK, UPDATE };
typedef struct {
    float *out;          /* where the tile goes (but for UPDATE) */
    const float *before; /* PLAIN, UPDATE: what earlier chunks added up, to be added, or NULL */
    const float *bias;   /* a row to be added to all, or NULL */
    int more;            /* in how many more parts than one the rows of A come */
    const float *active; /* MASK: the activations whose sign says where ReLU let the signal through */
    Weights weights;     /* UPDATE: what the gradient is for, and by which rule */
    const Rule *rule;
    ptrdiff_t ld;        /* row length of all of these */
} Target;

/* What becomes of a tile of mr rows and nv vectors, whose first vector stands at `at`. */
INLINE void finish(int kind, vec *acc, int mr, int nv, const Target *t, ptrdiff_t at) {
#define EACH_OF_TILE(i, j)                                                                             \
    UNROLLED for (int m = 0, i = 0; m < mr; m++)                                                       \
        UNROLLED for (ptrdiff_t n = 0, j = at + m * t->ld; n < nv; n++, i++, j += VL)
    const vec zero = {0};
    if (kind == RELU) EACH_OF_TILE(i, j) AT(t->out + j) = relu(acc[i]);
    if (kind == MASK) EACH_OF_TILE(i, j) AT(t->out + j) = KEEP_IF(AT(t->active + j) > zero, acc[i]);
    if ((kind == PLAIN || kind == UPDATE) && t->before) EACH_OF_TILE(i, j) acc[i] += AT(t->before + j);
    if (kind == PLAIN) EACH_OF_TILE(i, j) AT(t->out + j) = acc[i];
    if (kind == UPDATE && only_momentum(t->rule)) {
        float *w = t->weights.w, *m1 = t->weights.m;
        const float keep = t->rule->momentum, lr = t->rule->lr;
        EACH_OF_TILE(i, j) AT(w + j) -= lr * (AT(m1 + j) = keep * AT(m1 + j) + acc[i]);
    } else if (kind == UPDATE) {
        _Alignas(VL * 4) vec g[TILE];
        UNROLLED for (int i = 0; i < mr * nv; i++) g[i] = acc[i];
        update(t->rule, g, mr, nv, &t->weights, at, t->ld);
    }
}

/* One tile of sum_k A(m, k) B(k, n), where A(m, k) is a[m][k], or a[k][m] if turned. */
INLINE void tile(int kind, int turned, int mr, int nv, ptrdiff_t m0, ptrdiff_t n0, ptrdiff_t M, ptrdiff_t K,
                 const float *const *a, const float *b, ptrdiff_t ldb, const Target *t) {
    vec acc[TILE];
    const float *row[MR1];
    UNROLLED for (int i = 0; i < mr * nv; i++) acc[i] = t->bias ? AT(t->bias + n0 + i % nv * VL) : (vec){0};
    for (int part = 0; part <= t->more; part++, a += M, b += K * ldb) {
        if (!turned)
            UNROLLED for (int m = 0; m < mr; m++) row[m] = a[m0 + m];
        for (ptrdiff_t k = 0; k < K; k++) {
            const float *bk = b + k * ldb + n0, *ak = turned ? a[k] + m0 : 0;
            vec bv[NV];
            UNROLLED for (int n = 0; n < nv; n++) bv[n] = AT(bk + n * VL);
            UNROLLED for (int m = 0; m < mr; m++)
                UNROLLED for (int n = 0; n < nv; n++) acc[m * nv + n] += (turned ? ak[m] : row[m][k]) * bv[n];
        }
    }
    finish(kind, acc, mr, nv, t, m0 * t->ld + n0);
}

/* All rows of a panel nv vectors wide: full tiles, then the rows left over. */
INLINE void panel(int kind, int turned, int nv, ptrdiff_t M, ptrdiff_t n0, ptrdiff_t K,
                  const float *const *a, const float *b, ptrdiff_t ldb, const Target *t) {
    const int mr = nv == 1 ? MR1 : MR * NV / nv;
    ptrdiff_t m = 0;
    for (; m + mr <= M; m += mr) tile(kind, turned, mr, nv, m, n0, M, K, a, b, ldb, t);
    if (mr > 8 && M - m >= 8) tile(kind, turned, 8, nv, m, n0, M, K, a, b, ldb, t), m += 8;
    if (mr > 6 && M - m >= 6) tile(kind, turned, 6, nv, m, n0, M, K, a, b, ldb, t), m += 6;
    switch (M - m) {
    case 5: tile(kind, turned, 5, nv, m, n0, M, K, a, b, ldb, t); break;
    case 4: tile(kind, turned, 4, nv, m, n0, M, K, a, b, ldb, t); break;
    case 3: tile(kind, turned, 3, nv, m, n0, M, K, a, b, ldb, t); break;
    case 2: tile(kind, turned, 2, nv, m, n0, M, K, a, b, ldb, t); break;
    case 1: tile(kind, turned, 1, nv, m, n0, M, K, a, b, ldb, t); break;
    }
}

/* name(M, N, K, a, b, ldb, target): A is M x K, B is K x N with rows ldb floats apart, and N is in whole vectors. Where
 * the rows of A come in parts, K is the length of one: a points at the first part of all rows, then at the second. */
#define PRODUCT(name, kind, turned)                                                                           \
    static void name(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const float *const *a, const float *b,            \
                     ptrdiff_t ldb, Target t) {                                                               \
        ptrdiff_t n = 0;                                                                                      \
        for (; n + NV * VL <= N; n += NV * VL) panel(kind, turned, NV, M, n, K, a, b, ldb, &t);               \
        for (; NV > 3 && n + 3 * VL <= N; n += 3 * VL) panel(kind, turned, 3, M, n, K, a, b, ldb, &t);        \
        for (; NV > 2 && n + 2 * VL <= N; n += 2 * VL) panel(kind, turned, 2, M, n, K, a, b, ldb, &t);        \
        for (; n < N; n += VL) panel(kind, turned, 1, M, n, K, a, b, ldb, &t);                                \
    }
PRODUCT(product, PLAIN, 0)
PRODUCT(product_relu, RELU, 0)
PRODUCT(product_mask, MASK, 0)
PRODUCT(product_update, UPDATE, 0)
PRODUCT(turned, PLAIN, 1)
PRODUCT(turned_mask, MASK, 1)
PRODUCT(turned_update, UPDATE, 1)

/* The product for few examples, of matrices whose rows both run along the inner dimension, whole vectors: out[b][i] =
 * row i of a times row b of d. Half a vector of rows and two examples at a time: each vector loaded serves several
 * sums, and all these sums are added up across their lanes together. */
static void dots(int rows, int n, int length, const float *a, ptrdiff_t lda, const float *d, ptrdiff_t ldd, float *out,
                 ptrdiff_t ld) {
    enum { HALF = VL / 2 };
    const ivec place = PLACES;
    for (int i = 0; i < rows; i += HALF) {
        ptrdiff_t row[HALF];
        UNROLLED for (int r = 0; r < HALF; r++) row[r] = (i + r < rows ? i + r : rows - 1) * lda;
        for (int b = 0; b < n; b += 2) {
            const float *one = d + b * ldd, *two = b + 1 < n ? one + ldd : one;
            vec sums[VL] = {{0}};
            for (int j = 0; j < length; j += VL)
                UNROLLED for (int r = 0; r < HALF; r++) {
                    vec w = AT(a + row[r] + j);
                    LOADED_ONCE(w);
                    sums[r] += w * AT(one + j);
                    sums[HALF + r] += w * AT(two + j);
                }
            const vec both = KEEP_IF(place % HALF + i < rows, totals(sums));
            memcpy(out + b * ld + i, &both, sizeof(vec) / 2);
            if (b + 1 < n) memcpy(out + (b + 1) * ld + i, (char *)&both + sizeof(vec) / 2, sizeof(vec) / 2);
        }
    }
}
