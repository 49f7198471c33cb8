/* Train one lane of a sweep: a ReLU network of linear layers, for some steps, on the core that calls.
 *
 * A small network's weights fit in a core's own cache, so the fastest order is the plain one: take one network and
 * run all its steps. What a stack of networks pays for (a pass over memory for every operation) is then not paid:
 * gradients go from registers straight into the update and never reach memory.
 *
 * Layout. A hidden layer of `in` inputs and `out` outputs is a matrix of in + 1 rows (the last is the bias: every input
 * row ends in a constant 1) and `out` columns rounded up to whole vectors; the padding is zero and stays zero. The last
 * layer is narrow, and rounding ten classes up to a vector of sixteen would waste six: it is stored the other way
 * round, a row an output, and its outputs are (outputs, examples), so that a vector holds one class of many examples.
 * Examples are read through row pointers. A batch is worked through in chunks of CHUNK examples, whose gradients add
 * up: the working set stays in cache for every batch size.
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
enum { MR1 = 16, CHUNK = 64, MAX_LAYERS = 16 }; /* MR1: rows of a tile one vector wide */

typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef double widevec __attribute__((vector_size(VL * 8), aligned(8)));
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
PRODUCT(forward_last, PLAIN, 0)
PRODUCT(backward, MASK, 0)
PRODUCT(backward_last, MASK, 1)
PRODUCT(gradient_store, PLAIN, 1)
PRODUCT(gradient_add, ADD, 1)
PRODUCT(gradient_update, UPDATE, 1)
PRODUCT(gradient_store_last, PLAIN, 0)
PRODUCT(gradient_add_last, ADD, 0)
PRODUCT(gradient_update_last, UPDATE, 0)

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
INLINE vec total(vec v) { /* the sum of the lanes, in each of them */
    for (int by = VL / 2; by; by /= 2) v += mixed(v, v, (ivec)PLACES ^ by);
    return v;
}

/* One step of turning a square: pairs of rows at distance `by` exchange the halves that are not in place. */
INLINE void exchange(vec *square, int by) {
    const ivec place = PLACES, low = place + (((place & by) != 0) & (VL - by));
    for (int r = 0; r < VL; r++)
        if (!(r & by)) {
            const vec a = square[r], b = square[r + by];
            square[r] = mixed(a, b, low), square[r + by] = mixed(a, b, low + by);
        }
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

/* In place, logits (classes, CHUNK) become d(mean cross-entropy)/d(logits) = (softmax(z) - onehot(label)) * scale.
 * Returns the sum of the losses of n examples, log(sum exp(z)) - z[label]; one logarithm serves many of them. */
static double cross_entropy(int n, int classes, float *z, const int32_t *label, float scale) {
    const ivec place = PLACES;
    const vec zero = {0};
    float wanted[CHUNK];
    vec margins = zero;
    widevec products = (widevec){0} + 1;
    for (int b = 0; b < n; b++) wanted[b] = z[label[b] * CHUNK + b];
    for (int b = 0; b < n; b += VL) {
        const ivec inside = place + b < n;
        vec top = AT(z + b), sum = zero;
        for (int j = 1; j < classes; j++) {
            vec v = AT(z + j * CHUNK + b);
            top = pick(v < top, top, v);
        }
        for (int j = 0; j < classes; j++) /* NaN passes: divergence must show */
            sum += AT(z + j * CHUNK + b) = vexp(AT(z + j * CHUNK + b) - top);
        margins += KEEP_IF(inside, top - AT(wanted + b));
        products *= __builtin_convertvector(pick(inside, sum, zero + 1), widevec);
        const vec share = scale / sum;
        for (int j = 0; j < classes; j++) AT(z + j * CHUNK + b) *= share;
    }
    for (int b = 0; b < n; b++) z[label[b] * CHUNK + b] -= scale;
    double loss = 0, product = 1;
    for (int lane = 0; lane < VL; lane++) {
        loss += margins[lane];
        if (!(product * products[lane] < 1e300)) loss += log(product), product = 1;
        product *= products[lane];
    }
    return loss + log(product);
}

/* The same for the squared error, whose mean is over examples and outputs. */
static double squared_error(int n, int outputs, float *z, const float *const *target, float scale) {
    double loss = 0;
    for (int b = 0; b < n; b++)
        for (int j = 0; j < outputs; j++) {
            float error = z[j * CHUNK + b] - target[b][j];
            loss += error * error;
            z[j * CHUNK + b] = error * (2 * scale / outputs);
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
 * of a batch need not lie together. Layer l reads h[l], a row an example; the last also reads it turned. */
typedef struct {
    int layers, outputs;
    const int *sizes;
    float *const *weight;
    float *h[MAX_LAYERS], *d[MAX_LAYERS];        /* what layer l reads, and the loss differentiated by it */
    float *across, *z;                           /* h of the last layer, turned; its outputs, then the loss by them */
    float *sum[MAX_LAYERS], *turned[MAX_LAYERS]; /* gradient of earlier chunks; transposed weights */
    const float *input[MAX_LAYERS][CHUNK], *signal[MAX_LAYERS][CHUNK], *target[CHUNK];
    const float **z_row, **weight_row;           /* of the last layer */
    int32_t label[CHUNK];
    int ld[MAX_LAYERS];                          /* row length of h and d */
    float *scratch;
    long used;
} Net;

int vector_length(void) { return VL; }

static int padded(int n) { return (n + VL - 1) / VL * VL; }
static int rows_of(const Net *net, int l) { return l < net->layers - 1 ? net->sizes[l] + 1 : net->outputs; }
static int row_length(const Net *net, int l) {
    return padded(l < net->layers - 1 ? net->sizes[l + 1] : net->sizes[l] + 1);
}

static float *room(Net *net, long floats) {
    float *start = net->scratch ? net->scratch + net->used : NULL;
    net->used += (floats + 15) / 16 * 16;
    return start;
}

/* The scratch must be zero when it is first used; without one, this only counts what is needed. */
static void lay_out(Net *net, int layers, const int *sizes, float *const *weight, float *scratch) {
    const int last = layers - 1;
    net->layers = layers, net->sizes = sizes, net->outputs = sizes[layers], net->weight = weight;
    net->scratch = scratch, net->used = 0;
    for (int l = 0; l < layers; l++) {
        net->ld[l] = padded(sizes[l]) + VL; /* room for the constant 1 */
        net->h[l] = room(net, l || !last ? CHUNK * net->ld[l] : 0);
        net->d[l] = room(net, l ? CHUNK * net->ld[l] : 0);
        net->sum[l] = room(net, (long)rows_of(net, l) * row_length(net, l));
        net->turned[l] = room(net, l && l < last ? (long)sizes[l + 1] * padded(sizes[l]) : 0);
    }
    net->across = room(net, (long)(sizes[last] + 1) * CHUNK);
    net->z = room(net, (long)net->outputs * CHUNK);
    net->z_row = (const float **)room(net, 2 * net->outputs); /* a pointer takes the room of two floats, at most */
    net->weight_row = (const float **)room(net, 2 * net->outputs);
    if (!scratch) return;
    for (int l = 0; l < layers; l++)
        for (int b = 0; b < CHUNK && (l || !last); b++) {
            net->input[l][b] = net->h[l] + b * net->ld[l], net->signal[l][b] = net->d[l] + b * net->ld[l];
            net->h[l][b * net->ld[l] + sizes[l]] = 1;
        }
    for (int j = 0; j < net->outputs; j++)
        net->z_row[j] = net->z + j * CHUNK, net->weight_row[j] = weight[last] + j * row_length(net, last);
    for (int b = 0; b < CHUNK; b++) net->across[sizes[last] * CHUNK + b] = 1;
}

/* Floats of scratch that `train` and `evaluate` need. */
long scratch_floats(int layers, const int *sizes) {
    Net net;
    lay_out(&net, layers, sizes, NULL, NULL);
    return net.used;
}

/* Point at n examples: order[0] ... order[n - 1], or first, first + 1, ... where there is no order. */
static void choose(Net *net, int n, const int32_t *order, ptrdiff_t first, const float *x, const int32_t *label,
                   const float *target) {
    const int in = net->sizes[0];
    for (int b = 0; b < n; b++) {
        ptrdiff_t example = order ? order[first + b] : first + b;
        if (net->layers > 1) net->input[0][b] = x + example * (in + 1);
        else memcpy(net->h[0] + b * net->ld[0], x + example * (in + 1), sizeof(float) * in);
        if (label) net->label[b] = label[example];
        else net->target[b] = target + example * net->outputs;
    }
}

/* The outputs of the chosen examples, into z: (outputs, CHUNK). */
static void forward(Net *net, int n) {
    const int last = net->layers - 1, in = net->sizes[last];
    for (int l = 0; l < last; l++) {
        const int out = net->sizes[l + 1], length = row_length(net, l), ld = net->ld[l + 1];
        forward_relu(n, length, net->sizes[l] + 1, net->input[l], net->weight[l], length,
                     (Target){.out = net->h[l + 1], .ld = ld});
        for (int b = 0; b < n && length > out; b++) net->h[l + 1][b * ld + out] = 1; /* the padding held it */
    }
    transpose(n, in, net->h[last], net->ld[last], net->across, CHUNK);
    forward_last(net->outputs, padded(n), in + 1, net->weight_row, net->across, CHUNK,
                 (Target){.out = net->z, .ld = CHUNK});
}

/* The sum of the losses; outputs become the gradient of (scale * that sum). */
static double loss_and_signal(Net *net, int n, int classes, float scale) {
    return classes ? cross_entropy(n, net->outputs, net->z, net->label, scale)
                   : squared_error(n, net->outputs, net->z, net->target, scale);
}

/* Transposed weights for the backward product, except where it is done by rows: for batches too small to pay. */
static int by_rows(const Net *net, int l, int n) { return n * (row_length(net, l) / VL + 8) < 2 * net->sizes[l + 1]; }

/* The signal that layer l sends to the one below. */
static void send_back(Net *net, int l, int n, int first) {
    const int in = net->sizes[l], out = net->sizes[l + 1], length = row_length(net, l), ld = net->ld[l];
    const Target t = {.out = net->d[l], .ld = ld, .active = net->h[l]};
    if (l == net->layers - 1) {
        backward_last(n, padded(in), out, net->z_row, net->weight[l], length, t);
        for (int b = 0; b < n && padded(in) > in; b++) net->d[l][b * ld + in] = 0; /* the constant sends no signal */
    } else if (by_rows(net, l, n))
        backward_by_rows(n, in, length, length, net->weight[l], net->signal[l + 1], net->d[l], net->h[l], ld);
    else {
        if (first) transpose(in, out, net->weight[l], length, net->turned[l], padded(in));
        backward(n, padded(in), out, net->signal[l + 1], net->turned[l], padded(in), t);
    }
}

/* The last layer's update (or what this chunk adds to it). Where the bias would stand alone in a vector, it is summed
 * apart: a product for its sake would cost as much as sixteen inputs. */
static void update_last(Net *net, int n, int first, int final, Target t) {
    const int l = net->layers - 1, in = net->sizes[l], alone = in % VL == 0, columns = (int)t.ld - alone * VL;
    const ivec place = PLACES;
    (final ? gradient_update_last : first ? gradient_store_last : gradient_add_last)(
        net->outputs, columns, n, net->z_row, net->h[l], net->ld[l], t);
    for (int j = 0; alone && j < net->outputs; j++) {
        vec sum = {0};
        for (int b = 0; b < n; b += VL) sum += KEEP_IF(place + b < n, AT(net->z_row[j] + b));
        finish(final ? UPDATE : first ? PLAIN : ADD, KEEP_IF(place < 1, total(sum)), &t, j * t.ld + in);
    }
}

/* The backward pass of a chunk, from the last layer to the first; on the final chunk of a batch each layer is
 * updated as soon as the layer below has its signal. */
static void backward_and_update(Net *net, int n, int first, int final, float *const *velocity, Rule rule) {
    for (int l = net->layers - 1; l >= 0; l--) {
        const int length = row_length(net, l);
        const Target t = {.out = first && final ? NULL : net->sum[l], .ld = length, .weight = net->weight[l],
                          .velocity = velocity[l], .rule = rule};
        if (l) send_back(net, l, n, first);
        if (l == net->layers - 1) update_last(net, n, first, final, t);
        else
            (final ? gradient_update : first ? gradient_store : gradient_add)(
                net->sizes[l] + 1, length, n, net->input[l], net->d[l + 1], net->ld[l + 1], t);
    }
}

/* sizes: inputs, hidden widths, outputs (layers + 1 numbers). weight[l], velocity[l]: (sizes[l] + 1, padded outputs),
 * of the last layer (outputs, padded sizes[l] + 1).
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
    double loss = 0;
    *right = 0;
    for (int64_t at = 0; at < examples; at += CHUNK) {
        const int n = examples - at < CHUNK ? (int)(examples - at) : CHUNK;
        choose(&net, n, NULL, at, x, label, target);
        forward(&net, n);
        for (int b = 0; label && b < n; b++) { /* the first of the largest, as argmax has it */
            int best = 0;
            for (int j = 1; j < net.outputs; j++)
                if (net.z[j * CHUNK + b] > net.z[best * CHUNK + b]) best = j;
            *right += best == net.label[b];
        }
        loss += loss_and_signal(&net, n, label != NULL, 1);
    }
    return loss;
}
