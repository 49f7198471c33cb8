/* The other operations of a tape: activations, sums, means over positions, dropout, layer normalization, embeddings. */

/* exp(-x^2 / 2), and through *phi the share of the normal distribution below x: 1/2 + erf(x / sqrt(2)) / 2, by formula
 * 7.1.26 of Abramowitz & Stegun, off by 8e-8 at most. */
INLINE vec normal(vec x, vec *phi) {
    const vec zero = {0}, size = pick(x < zero, -x, x), bell = vexp(-0.5f * x * x);
    const vec t = 1.0f / (1.0f + (0.3275911f * 0.70710678f) * size);
    vec p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t * bell * 0.5f; /* the share beyond |x| */
    *phi = pick(x < zero, p, 1.0f - p);
    return bell;
}

/* The activation of x, which is y, and its slope there. */
INLINE vec activation(int choice, vec x) {
    vec phi;
    if (choice == TANH_OF) return vtanh(x);
    if (choice == RELU_OF) return relu(x);
    normal(x, &phi);
    return x * phi;
}
INLINE vec slope_of(int choice, vec x, vec y) {
    const vec zero = {0};
    vec phi;
    if (choice == TANH_OF) return 1.0f - y * y;
    if (choice == RELU_OF) return KEEP_IF(x > zero, zero + 1);
    return 0.39894228f * x * normal(x, &phi) + phi;
}

/* The vectors of y's n examples. */
#define EACH_VECTOR(y, n, j) for (size_t j = 0, all = (size_t)(n) * (y)->positions * (y)->ld; j < all; j += VL)

/* The signal at y, as it is, to x. */
static void pass_on(Tensor *x, const Tensor *y, int n) {
    EACH_VECTOR(y, n, j) send(x->reached, VL, x->d + j, y->d + j, 1);
    x->reached = 1;
}

static void activate_all(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    EACH_VECTOR(y, n, j) AT(y->h + j) = activation(op->choice, AT(x->h + j));
}
static void activate_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    EACH_VECTOR(y, n, j) AT(y->d + j) *= slope_of(op->choice, AT(x->h + j), AT(y->h + j));
    pass_on(x, y, n);
}

static void add(Work *work, const Op *op, int n) {
    const Tensor *a = work->tensor + op->from, *b = work->tensor + op->other, *y = work->tensor + op->to;
    EACH_VECTOR(y, n, j) AT(y->h + j) = AT(a->h + j) + AT(b->h + j);
}
static void add_back(Work *work, const Op *op, int n) {
    pass_on(work->tensor + op->from, work->tensor + op->to, n);
    pass_on(work->tensor + op->other, work->tensor + op->to, n);
}

static void mean_of(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    for (int e = 0; e < n; e++) {
        const float *from = x->h + (size_t)e * x->positions * x->ld;
        clear(y->h + e * y->ld, y->ld);
        for (int p = 0; p < x->positions; p++) send(1, y->ld, y->h + e * y->ld, from + p * x->ld, 1.0f / x->positions);
    }
}
static void mean_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    for (int r = 0; r < n * x->positions; r++)
        send(0, x->ld, x->d + (size_t)r * x->ld, y->d + r / x->positions * y->ld, 1.0f / x->positions);
    x->reached = 1;
}

/* Dropout, with the masks of layers.Dropout; kept is what each entry is divided by, or 0. */
static void drop_some(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const uint64_t count = mix((uint64_t)(work->tape->draw[op->choice] + work->tape->step + 1));
    const uint64_t first = count + (uint64_t)(work->place * y->positions * y->channels), least = op->rate * 0x1p53;
    const float left = 1 - op->rate;
    if (!work->learning) {
        copy(y->h, x->h, n * y->positions * y->ld);
        return;
    }
    for (size_t r = 0; r < (size_t)n * y->positions; r++)
        for (int j = 0; j < y->channels; j++) {
            const size_t i = r * y->ld + j;
            y->kept[i] = mix(first + r * y->channels + j) >> 11 >= least ? left : 0;
            y->h[i] = y->kept[i] > 0 ? x->h[i] / left : 0;
        }
}
static void drop_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const vec zero = {0};
    EACH_VECTOR(y, n, j) AT(y->d + j) = KEEP_IF(AT(y->kept + j) > zero, AT(y->d + j) / AT(y->kept + j));
    pass_on(x, y, n);
}

/* Layer normalization of every row, see norm.c; what is kept is every row's u, then its scale. */
static void layer_norm(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const int rows = n * y->positions, ld = y->ld;
    float *scale = y->kept + (size_t)rows * ld;
    copy(y->h, x->h, rows * ld);
    for (int r = 0; r < rows; r++)
        scale[r] = normalize(y->channels, ld, op->eps, work->weight[op->weight], y->h + r * ld, y->kept + r * ld);
}
static void layer_norm_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const int rows = n * y->positions, ld = y->ld;
    const float *scale = y->kept + (size_t)rows * ld;
    for (int r = 0; r < rows; r++)
        normalize_back(y->channels, ld, scale[r], work->weight[op->weight], y->kept + r * ld, y->d + r * ld,
                       work->sum[op->weight]);
    pass_on(x, y, n);
}

/* A token's row of one table, and its place's row of another. */
static void embed(Work *work, const Op *op, int n) {
    const Tensor *y = work->tensor + op->to;
    const float *token = work->weight[op->weight], *place = work->weight[op->weight + 1];
    for (int e = 0; e < n; e++)
        for (int p = 0; p < y->positions; p++) {
            float *to = y->h + ((size_t)e * y->positions + p) * y->ld;
            copy(to, token + work->data->token[example(work, e) * y->positions + p] * y->ld, y->ld);
            send(1, y->ld, to, place + p * y->ld, 1);
        }
}
static void embed_back(Work *work, const Op *op, int n) {
    const Tensor *y = work->tensor + op->to;
    float *token = work->sum[op->weight], *place = work->sum[op->weight + 1];
    for (int e = 0; e < n; e++)
        for (int p = 0; p < y->positions; p++) {
            const float *d = y->d + ((size_t)e * y->positions + p) * y->ld;
            send(1, y->ld, token + work->data->token[example(work, e) * y->positions + p] * y->ld, d, 1);
            send(1, y->ld, place + p * y->ld, d, 1);
        }
}
