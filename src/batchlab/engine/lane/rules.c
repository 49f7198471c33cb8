/* What a gradient does to the weights: the rules of batchlab.optim, one short function each.
 *
 * A rule gets one vector of gradient, g, and the vectors at the same place of the weights, w, and of what it remembers
 * of earlier steps: the first moment m and the second moment v. Everything is elementwise, so a whole step is the
 * rule on every vector. `update` is called with a tile of gradient that has just left the registers.
 */
enum { SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADAM, ADAMW, LARS, LAMB };

/* A rule's settings, in double precision: 1 - 0.999 in single is wrong in the fifth digit. */
typedef struct {
    int kind;
    double momentum, b1, b2, eps, trust, weight_decay, l1, ema;
} Settings;

/* The settings of one step: c1 = 1 - b1, c2 = 1 - b2; rate is lr and unbias 1, but for Adam's corrections. */
typedef struct {
    int kind;
    float lr, rate, unbias, momentum, b1, c1, b2, c2, eps, trust, weight_decay, l1, ema, new_in_ema;
} Rule;

/* One layer's weights, moments and average, arrays of one shape; what a rule does not keep is w, and not read. */
typedef struct {
    float *w, *m, *v, *average;
} Weights;

static double correction(double b, double step) { return b > 0 ? -expm1(step * log(b)) : 1; } /* 1 - b^step */

static Rule rule_at(const Settings *s, float lr, double step) {
    Rule r = {s->kind, lr, lr, 1, s->momentum, s->b1, 1 - s->b1, s->b2, 1 - s->b2,
              s->eps, s->trust, s->weight_decay, s->l1, s->ema, 1 - s->ema};
    if (s->kind == ADAM || s->kind == ADAMW) {
        r.rate = lr / correction(s->b1, step);
        r.unbias = 1 / correction(s->b2, step);
    }
    return r;
}

/* w <- w - lr (g + weight_decay w) */
INLINE void sgd(Rule r, vec g, vec *w, vec *m, vec *v) { *w -= r.lr * (g + r.weight_decay * *w); }

/* m <- momentum m + g + weight_decay w;  w <- w - lr m */
INLINE void momentum(Rule r, vec g, vec *w, vec *m, vec *v) {
    *m = r.momentum * *m + (g + r.weight_decay * *w);
    *w -= r.lr * *m;
}

/* g <- g + weight_decay w;  m <- momentum m + g;  w <- w - lr (g + momentum m) */
INLINE void nesterov(Rule r, vec g, vec *w, vec *m, vec *v) {
    g += r.weight_decay * *w;
    *m = r.momentum * *m + g;
    *w -= r.lr * (g + r.momentum * *m);
}

/* g <- g + weight_decay w;  v <- v + g^2;  w <- w - lr g / (sqrt(v) + eps) */
INLINE void adagrad(Rule r, vec g, vec *w, vec *m, vec *v) {
    g += r.weight_decay * *w;
    *v += g * g;
    *w -= r.lr * g / (root(*v) + r.eps);
}

/* g <- g + weight_decay w;  v <- b2 v + (1 - b2) g^2;  w <- w - lr g / (sqrt(v) + eps), with b2 the rule's alpha */
INLINE void rmsprop(Rule r, vec g, vec *w, vec *m, vec *v) {
    g += r.weight_decay * *w;
    *v = r.b2 * *v + r.c2 * g * g;
    *w -= r.lr * g / (root(*v) + r.eps);
}

/* m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) */
INLINE void adam_step(Rule r, vec g, vec *w, vec *m, vec *v) {
    *m = r.b1 * *m + r.c1 * g;
    *v = r.b2 * *v + r.c2 * g * g;
    *w -= r.rate * *m / (root(*v * r.unbias) + r.eps);
}

/* Weight decay in the gradient, and divided by sqrt(v) with it. */
INLINE void adam(Rule r, vec g, vec *w, vec *m, vec *v) { adam_step(r, g + r.weight_decay * *w, w, m, v); }

/* Weight decay apart: w <- w (1 - lr weight_decay), then Adam's step with the bare gradient. */
INLINE void adamw(Rule r, vec g, vec *w, vec *m, vec *v) {
    *w *= 1 - r.lr * r.weight_decay;
    adam_step(r, g, w, m, v);
}

/* Momentum and nothing besides: so little that a tile of gradient can stay in the registers for it. */
static int only_momentum(const Rule *r) {
    return r->kind == MOMENTUM && r->weight_decay == 0 && r->l1 == 0 && r->ema == 0;
}

/* d(l1 sum|w|)/dw, where sign(0) = 0 */
INLINE vec sign(vec w) {
    const vec zero = {0}, one = zero + 1;
    return KEEP_IF(w > zero, one) - KEEP_IF(w < zero, one);
}

/* One step for a tile of weights: g holds its gradient, row by row, and `at` is where its first vector stands in the
 * layer, whose rows are ld floats long. The rule is chosen once, outside the loop. */
__attribute__((noinline)) static void update(const Rule *rule, vec *g, int rows, int vectors, const Weights *p,
                                             ptrdiff_t at, ptrdiff_t ld) {
    const Rule r = *rule;
    float *w = p->w + at, *m = p->m + at, *v = p->v + at, *average = p->average + at;
#define EACH(i, j) \
    for (ptrdiff_t y = 0, i = 0, j = 0; y < rows; y++, j = y * ld) \
        for (int x = 0; x < vectors; x++, i++, j += VL)
#define APPLY(rule) EACH(i, j) rule(r, g[i], &AT(w + j), &AT(m + j), &AT(v + j))
    if (r.l1 > 0) EACH(i, j) g[i] += r.l1 * sign(AT(w + j));
    switch (r.kind) {
    case SGD: APPLY(sgd); break;
    case MOMENTUM: APPLY(momentum); break;
    case NESTEROV: APPLY(nesterov); break;
    case ADAGRAD: APPLY(adagrad); break;
    case RMSPROP: APPLY(rmsprop); break;
    case ADAM: APPLY(adam); break;
    case ADAMW: APPLY(adamw); break;
    }
    if (r.ema > 0) EACH(i, j) AT(average + j) = r.ema * AT(average + j) + r.new_in_ema * AT(w + j);
}
