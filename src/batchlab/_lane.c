/* Train one lane of a sweep: a ReLU network of linear layers, for some steps, on the core that calls.
 *
 * A small network's weights fit in a core's own cache, so the fastest order is the plain one: take one network and
 * run all its steps. What a stack of networks pays for (a pass over memory for every operation) is then not paid:
 * gradients go from registers straight into the update and never reach memory.
 *
 * Layout. A layer of `in` inputs and `out` outputs is a matrix of in + 1 rows (the last is the bias: every input
 * row ends in a constant 1) and `out` columns rounded up to whole vectors; the padding is zero and stays zero.
 * Examples are read through row pointers, so a batch is never copied. A batch is worked through in chunks of CHUNK
 * examples, whose gradients add up: the working set stays in cache for every batch size.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Vector length, and the largest tile of accumulators that fits in the registers: MR rows x NV vectors. */
#if defined(__AVX512F__)
enum { VL = 16, MR = 6, NV = 4 };
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX__)
enum { VL = 8, MR = 6, NV = 2 };
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7}
#else
enum { VL = 4, MR = 4, NV = 4 };
#define PLACES {0, 1, 2, 3}
#endif
enum { MR1 = 16, CHUNK = 128, MAX_LAYERS = 16 }; /* MR1: rows of a tile one vector wide */

typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(vec *)(p))
#define KEEP_IF(mask, v) ((vec)((ivec)(v) & (mask)))

INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

typedef struct {
    float lr, momentum, weight_decay;
    int nesterov;
} Rule;

/* What becomes of a finished tile. */
enum { RELU, PLAIN, MASK, ADD, UPDATE };
typedef struct {
    float *out;        /* where the tile goes; for UPDATE, what earlier chunks added up (or NULL) */
    ptrdiff_t ld;      /* row length of out, active, weight and velocity */
    const float *active; /* MASK: the activations whose sign says where ReLU let the signal through */
    float *weight, *velocity;
    Rule rule;
} Target;

INLINE void finish(int kind, vec acc, const Target *t, ptrdiff_t at) {
    const vec zero = {0};
    if (kind == RELU) AT(t->out + at) = KEEP_IF(~(acc < zero), acc); /* NaN passes: divergence must show */
    if (kind == PLAIN) AT(t->out + at) = acc;
    if (kind == MASK) AT(t->out + at) = KEEP_IF(AT(t->active + at) > zero, acc);
    if (kind == ADD) AT(t->out + at) += acc;
    if (kind == UPDATE) {
        vec w = AT(t->weight + at), v = AT(t->velocity + at);
        if (t->out) acc += AT(t->out + at);
        acc += t->rule.weight_decay * w;
        v = t->rule.momentum * v + acc;
        AT(t->velocity + at) = v;
        if (t->rule.nesterov) v = t->rule.momentum * v + acc;
        AT(t->weight + at) = w - t->rule.lr * v;
    }
}

/* One tile of sum_k A(m, k) B(k, n), where A(m, k) is a[m][k], or a[k][m] if turned. */
INLINE void tile(int kind, int turned, int mr, int nv, ptrdiff_t m0, ptrdiff_t n0, ptrdiff_t K,
                 const float *const *a, const float *b, ptrdiff_t ldb, const Target *t) {
    vec acc[MR1 * NV];
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
    for (int m = 0; m < mr; m++)
        for (int n = 0; n < nv; n++) finish(kind, acc[m * nv + n], t, (m0 + m) * t->ld + n0 + n * VL);
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

#define PRODUCT(name, kind, turned)                                                                           \
    static void name(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const float *const *a, const float *b,            \
                     ptrdiff_t ldb, Target t) {                                                               \
        ptrdiff_t n = 0;                                                                                      \
        for (; n + NV * VL <= N; n += NV * VL) panel(kind, turned, NV, M, n, K, a, b, ldb, &t);               \
        for (; n + 2 * VL <= N; n += 2 * VL) panel(kind, turned, 2, M, n, K, a, b, ldb, &t);                  \
        for (; n < N; n += VL) panel(kind, turned, 1, M, n, K, a, b, ldb, &t);                                \
    }
PRODUCT(forward_relu, RELU, 0)
PRODUCT(forward_plain, PLAIN, 0)
PRODUCT(backward, MASK, 0)
PRODUCT(gradient_add, ADD, 1)
PRODUCT(gradient_update, UPDATE, 1)

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

/* Neighbours at distance `by` (a power of two) change places; halving `by` folds a vector into each of its places. */
INLINE vec swapped(vec v, int by) {
#ifdef __clang__
    vec out;
    for (int j = 0; j < VL; j++) out[j] = v[j ^ by];
    return out;
#else
    return __builtin_shuffle(v, (ivec)PLACES ^ by);
#endif
}
INLINE vec total(vec v) {
    for (int by = VL / 2; by; by /= 2) v += swapped(v, by);
    return v;
}
INLINE vec largest(vec v) {
    for (int by = VL / 2; by; by /= 2) {
        vec other = swapped(v, by);
        v = pick(v > other, v, other);
    }
    return v;
}

/* In place, logits become d(mean cross-entropy)/d(logits) = (softmax(z) - onehot(label)) * scale; padding becomes 0.
 * Returns the sum of the losses, log(sum exp(z)) - z[label]; one logarithm serves many rows. */
static double cross_entropy(int n, int classes, float *z, ptrdiff_t ld, const int32_t *label, float scale) {
    const ivec place = PLACES;
    const vec low = (vec){0} - 3e38f;
    double loss = 0, product = 1;
    for (int b = 0; b < n; b++, z += ld) {
        vec top = low, sum = {0};
        const float wanted = z[label[b]];
        for (int j = 0; j < classes; j += VL) {
            vec v = pick(place + j < classes, AT(z + j), low);
            top = pick(v < top, top, v); /* NaN passes: divergence must show */
        }
        top = largest(top);
        for (int j = 0; j < classes; j += VL) {
            vec e = KEEP_IF(place + j < classes, vexp(AT(z + j) - top));
            AT(z + j) = e;
            sum += e;
        }
        sum = total(sum);
        const float share = scale / sum[0]; /* not as a vector: vector divisions are slow */
        loss += top[0] - wanted;
        product *= sum[0];
        if (product > 1e280) loss += log(product), product = 1;
        for (int j = 0; j < classes; j += VL) AT(z + j) *= share;
        z[label[b]] -= scale;
    }
    return loss + log(product);
}

/* The same for the squared error, whose mean is over examples and outputs. */
static double squared_error(int n, int outputs, float *z, ptrdiff_t ld, const float *const *target, float scale) {
    double loss = 0;
    for (int b = 0; b < n; b++, z += ld)
        for (int j = 0; j < outputs; j++) {
            float error = z[j] - target[b][j];
            loss += error * error;
            z[j] = error * (2 * scale / outputs);
        }
    return loss / outputs;
}

/* The backward product without a turned copy of the weights, for batches too small to pay for one. */
static void backward_by_rows(int n, int in, int out, ptrdiff_t ldw, const float *w, const float *const *d,
                             float *back, const float *active, ptrdiff_t ld) {
    for (int i = 0; i < in; i++)
        for (int b = 0; b < n; b++) {
            vec sum = {0};
            for (int j = 0; j < out; j += VL) sum += AT(w + i * ldw + j) * AT(d[b] + j);
            back[b * ld + i] = active[b * ld + i] > 0 ? total(sum)[0] : 0;
        }
}

/* Denormal numbers slow a core a hundredfold, and the velocity of a dead unit decays through all of them. */
#if defined(__SSE__)
#define FLUSH_DENORMALS() unsigned saved = __builtin_ia32_stmxcsr(); __builtin_ia32_ldmxcsr(saved | 0x8040)
#define RESTORE_DENORMALS() __builtin_ia32_ldmxcsr(saved)
#else
#define FLUSH_DENORMALS()
#define RESTORE_DENORMALS()
#endif

/* A network, and the room to work on CHUNK examples of it. Row pointers stand in for matrices, so that the examples
 * of a batch need not lie together. */
typedef struct {
    int layers, outputs;
    const int *sizes;
    float *const *weight;
    float *h[MAX_LAYERS], *d[MAX_LAYERS];           /* activations, and the loss differentiated by them */
    float *sum[MAX_LAYERS], *turned[MAX_LAYERS];    /* gradient of earlier chunks; transposed weights */
    const float *input[MAX_LAYERS + 1][CHUNK], *signal[MAX_LAYERS][CHUNK], *target[CHUNK];
    int32_t label[CHUNK];
    int padded[MAX_LAYERS], ld[MAX_LAYERS];
} Net;

static int padded_to(int n) { return (n + VL - 1) / VL * VL; }

int vector_length(void) { return VL; }

/* Floats of scratch that `train` and `evaluate` need; the scratch must be zero when it is first used. */
long scratch_floats(int layers, const int *sizes) {
    long total = 0;
    for (int l = 0; l < layers; l++)
        total += 2 * CHUNK * (padded_to(sizes[l + 1]) + VL) + (sizes[l] + 1) * padded_to(sizes[l + 1])
                 + sizes[l + 1] * padded_to(sizes[l]);
    return total;
}

static void lay_out(Net *net, int layers, const int *sizes, float *const *weight, float *scratch) {
    net->layers = layers, net->sizes = sizes, net->outputs = sizes[layers], net->weight = weight;
    for (int l = 0; l < layers; l++) {
        net->padded[l] = padded_to(sizes[l + 1]);
        net->ld[l] = net->padded[l] + VL; /* room for the constant 1 */
        net->h[l] = scratch, scratch += CHUNK * net->ld[l];
        net->d[l] = scratch, scratch += CHUNK * net->ld[l];
        net->sum[l] = scratch, scratch += (sizes[l] + 1) * net->padded[l];
        net->turned[l] = scratch, scratch += sizes[l + 1] * padded_to(sizes[l]);
        for (int b = 0; b < CHUNK; b++) {
            net->input[l + 1][b] = net->h[l] + b * net->ld[l], net->signal[l][b] = net->d[l] + b * net->ld[l];
            net->h[l][b * net->ld[l] + sizes[l + 1]] = 1;
        }
    }
}

/* Point at n examples: order[0] ... order[n - 1], or first, first + 1, ... where there is no order. */
static void choose(Net *net, int n, const int32_t *order, ptrdiff_t first, const float *x, const int32_t *label,
                   const float *target) {
    for (int b = 0; b < n; b++) {
        ptrdiff_t example = order ? order[first + b] : first + b;
        net->input[0][b] = x + example * (net->sizes[0] + 1);
        if (label) net->label[b] = label[example];
        else net->target[b] = target + example * net->outputs;
    }
}

/* The outputs of the chosen examples, into d of the last layer. */
static void forward(Net *net, int n) {
    int l = 0;
    for (; l < net->layers - 1; l++) {
        const int ld = net->ld[l], padded = net->padded[l], out = net->sizes[l + 1];
        forward_relu(n, padded, net->sizes[l] + 1, net->input[l], net->weight[l], padded,
                     (Target){.out = net->h[l], .ld = ld});
        if (padded > out) /* the padding held the constant 1 */
            for (int b = 0; b < n; b++) net->h[l][b * ld + out] = 1;
    }
    forward_plain(n, net->padded[l], net->sizes[l] + 1, net->input[l], net->weight[l], net->padded[l],
                  (Target){.out = net->d[l], .ld = net->ld[l]});
}

/* The sum of the losses; outputs become the gradient of (scale * that sum). */
static double loss_and_signal(Net *net, int n, int classes, float scale) {
    const int last = net->layers - 1;
    return classes ? cross_entropy(n, net->outputs, net->d[last], net->ld[last], net->label, scale)
                   : squared_error(n, net->outputs, net->d[last], net->ld[last], net->target, scale);
}

/* Transposed weights for the backward product, except where it is done by rows: for batches too small to pay. */
static int by_rows(const Net *net, int l, int n) { return n * (net->padded[l] / VL + 8) < 2 * net->sizes[l + 1]; }

static void turn(Net *net, int l) {
    const int in = net->sizes[l], out = net->sizes[l + 1];
    for (int i = 0; i < in; i++)
        for (int j = 0; j < out; j++) net->turned[l][j * net->padded[l - 1] + i] = net->weight[l][i * net->padded[l] + j];
}

/* The backward pass of a chunk, from the last layer to the first; on the final chunk of a batch each layer is
 * updated as soon as the layer below has its signal. */
static void backward_and_update(Net *net, int n, int first, int final, float *const *velocity, Rule rule) {
    for (int l = net->layers - 1; l >= 0; l--) {
        const int padded = net->padded[l], below = l ? net->padded[l - 1] : 0;
        if (l && by_rows(net, l, n))
            backward_by_rows(n, net->sizes[l], padded, padded, net->weight[l], net->signal[l], net->d[l - 1],
                             net->h[l - 1], net->ld[l - 1]);
        else if (l) {
            if (first) turn(net, l);
            backward(n, below, net->sizes[l + 1], net->signal[l], net->turned[l], below,
                     (Target){.out = net->d[l - 1], .ld = net->ld[l - 1], .active = net->h[l - 1]});
        }
        Target t = {.out = first && final ? NULL : net->sum[l], .ld = padded, .weight = net->weight[l],
                    .velocity = velocity[l], .rule = rule};
        if (first && !final) memset(net->sum[l], 0, sizeof(float) * (net->sizes[l] + 1) * padded);
        (final ? gradient_update : gradient_add)(net->sizes[l] + 1, padded, n, net->input[l], net->d[l], net->ld[l], t);
    }
}

/* sizes: inputs, hidden widths, outputs (layers + 1 numbers). weight[l], velocity[l]: (sizes[l] + 1, padded).
 * x: rows of sizes[0] + 1 floats, the last 1. label: the class of each row; or NULL, and then target: rows of outputs.
 * Step s takes the examples order[start[s]] ... order[start[s + 1] - 1] and the learning rate lr[s].
 * Adds the losses of the examples to *losses. Returns the steps made: fewer than `steps` where the mean loss of a
 * batch was not finite or above loss_bound, from which no update is made. */
int train(int layers, const int *sizes, float *const *weight, float *const *velocity, const float *x,
          const int32_t *label, const float *target, const int32_t *order, const int64_t *start, int steps,
          const float *lr, float momentum, float weight_decay, int nesterov, double loss_bound, double *losses,
          float *scratch) {
    Net net;
    lay_out(&net, layers, sizes, weight, scratch);
    FLUSH_DENORMALS();
    int s = 0, diverged = 0;
    for (; s < steps; s++) {
        const Rule rule = {lr[s], momentum, weight_decay, nesterov};
        const int64_t from = start[s], to = start[s + 1];
        double loss = 0;
        for (int64_t at = from; at < to && !diverged; at += CHUNK) {
            const int n = to - at < CHUNK ? (int)(to - at) : CHUNK, final = at + n == to;
            choose(&net, n, order, at, x, label, target);
            forward(&net, n);
            loss += loss_and_signal(&net, n, label != NULL, 1.0f / (to - from));
            diverged = final && !(loss / (to - from) <= loss_bound);
            if (!diverged) backward_and_update(&net, n, at == from, final, velocity, rule);
        }
        *losses += loss;
        if (diverged) break;
    }
    RESTORE_DENORMALS();
    return s;
}

/* The sum of the losses over all `examples`, and through *right how many a classifier gets right. */
double evaluate(int layers, const int *sizes, float *const *weight, const float *x, const int32_t *label,
                const float *target, int64_t examples, int64_t *right, float *scratch) {
    Net net;
    lay_out(&net, layers, sizes, weight, scratch);
    const int last = layers - 1;
    double loss = 0;
    *right = 0;
    for (int64_t at = 0; at < examples; at += CHUNK) {
        const int n = examples - at < CHUNK ? (int)(examples - at) : CHUNK;
        choose(&net, n, NULL, at, x, label, target);
        forward(&net, n);
        for (int b = 0; label && b < n; b++) { /* the first of the largest, as argmax has it */
            const float *z = net.d[last] + b * net.ld[last];
            int best = 0;
            for (int j = 1; j < net.outputs; j++)
                if (z[j] > z[best]) best = j;
            *right += best == net.label[b];
        }
        loss += loss_and_signal(&net, n, label != NULL, 1);
    }
    return loss;
}
