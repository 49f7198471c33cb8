/* The network: where its layers lie, and the forward and backward pass of a chunk of examples.
 *
 * A hidden layer of `in` inputs and `out` outputs is a matrix of in + 1 rows (the last is the bias: every input row
 * ends in a constant 1) and `out` columns rounded up to whole vectors; the padding is zero and stays zero. The last
 * layer is narrow, and rounding ten classes up to a vector of sixteen would waste six: it is stored the other way
 * round, a row an output, and its outputs are (outputs, examples), so that a vector holds one class of many examples.
 * After each hidden layer there may be layer normalization, and then the activation, ReLU or tanh; after ReLU, dropout.
 */
enum { MAX_LAYERS = 16 };

/* One lane, as Python hands it over. sizes: inputs, hidden widths, outputs (layers + 1 numbers). w, m, v, average: per
 * layer (sizes[l] + 1, padded outputs), of the last layer (outputs, padded sizes[l] + 1); then, if norm_eps > 0, per
 * hidden layer its gains and shifts (2, padded outputs). What the rule does not keep is w. scratch:
 * scratch_floats() floats, zero when first used. step: steps made so far. draw: per hidden layer, where its dropout of
 * the share `rate` began to count its masks; or NULL. */
typedef struct {
    int layers, is_tanh;
    float norm_eps;
    const int *sizes;
    float *const *w, *const *m, *const *v, *const *average;
    float *scratch;
    int64_t step;
    const int64_t *draw;
    double rate;
} Lane;

/* x: rows of sizes[0] + 1 floats, the last 1 (of a tape: what its first tensor holds; or NULL, and then token: the
 * numbers of tokens). label: the class of each; or NULL, and then target: rows of outputs. */
typedef struct {
    const float *x;
    const int32_t *token;
    const int32_t *label;
    const float *target;
    int64_t examples;
} Data;

/* A network, and the room to work on CHUNK examples of it. Row pointers stand in for matrices, so that the examples
 * of a batch need not lie together. Layer l reads h[l], a row an example; the last may read it turned. */
typedef struct {
    int layers, outputs, is_tanh;
    float norm_eps;
    const int *sizes;
    float *const *weight;
    float *h[MAX_LAYERS], *d[MAX_LAYERS];        /* what layer l reads, and the loss differentiated by it */
    float *across, *z;                           /* h of the last layer, turned; its outputs, then the loss by them */
    float *sum[MAX_LAYERS], *turned[MAX_LAYERS]; /* gradient of earlier chunks; transposed weights */
    float *unit[MAX_LAYERS], *scale[MAX_LAYERS], *gain_sum[MAX_LAYERS]; /* of the norm that made h[l]: see norm.c */
    const float *input[MAX_LAYERS][CHUNK], *signal[MAX_LAYERS][CHUNK], *target[CHUNK];
    const float **z_row, **weight_row;           /* of the last layer */
    int32_t label[CHUNK];
    int ld[MAX_LAYERS];                          /* row length of h and d */
    const int64_t *draw;                         /* NULL: no dropout now. Else as in Lane; */
    double rate;
    int64_t pass, place;                         /* forward passes so far, this one too; the chunk's place in its batch */
    float *scratch;
    long used;
} Net;

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

/* A lane without scratch is only measured. */
static void lay_out(Net *net, const Lane *lane, float *const *weight) {
    const int layers = lane->layers, last = layers - 1, *sizes = lane->sizes;
    net->layers = layers, net->sizes = sizes, net->outputs = sizes[layers], net->is_tanh = lane->is_tanh;
    net->norm_eps = lane->norm_eps, net->weight = weight, net->scratch = lane->scratch, net->used = 0;
    net->draw = NULL, net->rate = lane->rate;
    for (int l = 0; l < layers; l++) {
        net->ld[l] = padded(sizes[l]) + VL; /* room for the constant 1 */
        net->h[l] = room(net, l || !last ? CHUNK * net->ld[l] : 0);
        net->d[l] = room(net, l ? CHUNK * net->ld[l] : 0);
        net->sum[l] = room(net, (long)rows_of(net, l) * row_length(net, l));
        const int normed = l && net->norm_eps > 0;
        net->unit[l] = room(net, normed ? CHUNK * net->ld[l] : 0);
        net->scale[l] = room(net, normed ? CHUNK : 0);
        net->gain_sum[l] = room(net, normed ? 2 * padded(sizes[l]) : 0);
        net->turned[l] = room(net, l && l < last ? (long)sizes[l + 1] * padded(sizes[l]) : 0);
    }
    net->across = room(net, (long)(sizes[last] + 1) * CHUNK);
    net->z = room(net, (long)net->outputs * CHUNK);
    net->z_row = (const float **)room(net, 2 * net->outputs); /* a pointer takes the room of two floats, at most */
    net->weight_row = (const float **)room(net, 2 * net->outputs);
    if (!net->scratch) return;
    for (int l = 0; l < layers; l++)
        for (int b = 0; b < CHUNK && (l || !last); b++) {
            net->input[l][b] = net->h[l] + b * net->ld[l], net->signal[l][b] = net->d[l] + b * net->ld[l];
            net->h[l][b * net->ld[l] + sizes[l]] = 1;
        }
    for (int j = 0; j < net->outputs; j++)
        net->z_row[j] = net->z + j * CHUNK, net->weight_row[j] = weight[last] + j * row_length(net, last);
    for (int b = 0; b < CHUNK; b++) net->across[sizes[last] * CHUNK + b] = 1;
}

/* Point at n examples: order[0] ... order[n - 1], or first, first + 1, ... where there is no order. */
static void choose(Net *net, int n, const int32_t *order, ptrdiff_t first, const Data *data) {
    const int in = net->sizes[0];
    for (int b = 0; b < n; b++) {
        const ptrdiff_t example = order ? order[first + b] : first + b;
        if (net->layers > 1) net->input[0][b] = data->x + example * (in + 1);
        else memcpy(net->h[0] + b * net->ld[0], data->x + example * (in + 1), sizeof(float) * in);
        if (data->label) net->label[b] = data->label[example];
        else net->target[b] = data->target + example * net->outputs;
    }
}

static void activate(int is_tanh, int n, int length, float *h, int ld) {
    for (int b = 0; b < n; b++)
        for (int j = b * ld; j < b * ld + length; j += VL)
            if (is_tanh) AT(h + j) = vtanh(AT(h + j));
            else AT(h + j) = relu(AT(h + j));
}

/* SplitMix64's finaliser, and the mask that it makes of a layer's count and an entry's place, as layers.Dropout has it.
 * A dropped entry is 0, so the slope of ReLU stops its signal too; the others' signals are divided as they were. */
static uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static void drop(const Net *net, int l, int n) {
    const int width = net->sizes[l];
    const uint64_t count = mix((uint64_t)(net->draw[l - 1] + net->pass)), least = (uint64_t)(net->rate * 0x1p53);
    const float kept = 1 - net->rate;
    for (int b = 0; b < n; b++) {
        float *h = net->h[l] + b * net->ld[l];
        const uint64_t first = count + (uint64_t)(net->place + b) * width;
        for (int j = 0; j < width; j++) h[j] = mix(first + j) >> 11 >= least ? h[j] / kept : 0;
    }
}

/* The outputs of the chosen examples, into z: (outputs, CHUNK). ReLU is part of its product, unless a norm is there. */
static void forward(Net *net, int n) {
    const int last = net->layers - 1, in = net->sizes[last];
    for (int l = 0; l < last; l++) {
        const int out = net->sizes[l + 1], length = row_length(net, l), ld = net->ld[l + 1];
        const int normed = net->norm_eps > 0, apart = normed || net->is_tanh;
        float *h = net->h[l + 1];
        (apart ? product : product_relu)(n, length, net->sizes[l] + 1, net->input[l], net->weight[l], length,
                                         (Target){.out = h, .ld = ld});
        for (int b = 0; normed && b < n; b++)
            net->scale[l + 1][b] = normalize(out, length, net->norm_eps, net->weight[net->layers + l], h + b * ld,
                                             net->unit[l + 1] + b * ld);
        if (apart) activate(net->is_tanh, n, length, h, ld);
        if (net->draw) drop(net, l + 1, n);
        for (int b = 0; b < n && length > out; b++) h[b * ld + out] = 1; /* the padding held it */
    }
    if (n <= CHUNK / 2) {
        const int length = row_length(net, last);
        dots(n, net->outputs, length, net->h[last], net->ld[last], net->weight[last], length, net->z, CHUNK);
        return;
    }
    transpose(n, in, net->h[last], net->ld[last], net->across, CHUNK);
    product(net->outputs, padded(n), in + 1, net->weight_row, net->across, CHUNK, (Target){.out = net->z, .ld = CHUNK});
}

/* The sum of the losses; outputs become the gradient of (scale * that sum). */
static double loss_and_signal(Net *net, int n, int classes, float scale) {
    return classes ? cross_entropy(n, net->outputs, net->z, net->label, scale)
                   : squared_error(n, net->outputs, net->z, net->target, scale);
}

/* Whether a batch is too small to pay for a turned copy of the weights. */
static int by_rows(const Net *net, int l, int n) { return n < 8 + net->sizes[l + 1] / 16; }

/* Signals times the slope of the activation at h: of ReLU 0 or 1, of tanh 1 - h^2. */
static void slope(int is_tanh, int n, int in, float *d, const float *h, int ld) {
    const vec zero = {0};
    for (int b = 0; b < n; b++)
        for (int i = b * ld; i < b * ld + in; i += VL)
            if (is_tanh) AT(d + i) *= 1 - AT(h + i) * AT(h + i);
            else AT(d + i) = KEEP_IF(AT(h + i) > zero, AT(d + i));
}

/* The signal that layer l sends to the one below; `first`: the weights have not been turned yet in this step. */
static void send_back(Net *net, int l, int n, int first) {
    const int in = net->sizes[l], out = net->sizes[l + 1], length = row_length(net, l), ld = net->ld[l];
    const int last = l == net->layers - 1, rows = !last && by_rows(net, l, n);
    float *d = net->d[l], *h = net->h[l];
    const Target t = {.out = d, .ld = ld, .active = h};
    if (last)
        (net->is_tanh ? turned : turned_mask)(n, padded(in), out, net->z_row, net->weight[l], length, t);
    else if (rows)
        dots(in, n, length, net->weight[l], length, net->d[l + 1], net->ld[l + 1], d, ld);
    else {
        if (first) transpose(in, out, net->weight[l], length, net->turned[l], padded(in));
        (net->is_tanh ? product : product_mask)(n, padded(in), out, net->signal[l + 1], net->turned[l], padded(in), t);
    }
    if (net->is_tanh || rows) slope(net->is_tanh, n, padded(in), d, h, ld);
    for (int b = 0; last && b < n && padded(in) > in; b++) d[b * ld + in] = 0; /* the constant sends no signal */
    for (int b = 0; net->draw && b < n; b++)
        for (int i = b * ld; i < b * ld + padded(in); i += VL) AT(d + i) /= (float)(1 - net->rate);
}

/* The gradient of the last layer, added up, or into the update. Where the bias would stand alone in a vector, it is
 * summed apart: a product for its sake would cost as much as sixteen inputs. */
static void gradient_of_last(Net *net, int n, int learn, Target t) {
    const int l = net->layers - 1, in = net->sizes[l], alone = in % VL == 0, columns = (int)t.ld - alone * VL;
    const ivec place = PLACES;
    (learn ? product_update : product)(net->outputs, columns, n, net->z_row, net->h[l], net->ld[l], t);
    for (int j = 0; alone && j < net->outputs; j++) {
        vec sum = {0};
        for (int b = 0; b < n; b += VL) sum += KEEP_IF(place + b < n, AT(net->z_row[j] + b));
        vec bias = KEEP_IF(place < 1, (vec){0} + total(sum));
        finish(learn ? UPDATE : PLAIN, &bias, 1, 1, &t, j * t.ld + in);
    }
}

/* The signal that reaches the norm below layer l becomes the one that leaves it; its gains and shifts are updated on
 * the final chunk. */
static void norm_back(Net *net, int l, int n, int first, int final, const Lane *lane, Rule rule) {
    const int in = net->sizes[l], length = padded(in), ld = net->ld[l], own = net->layers + l - 1;
    const Weights p = {lane->w[own], lane->m[own], lane->v[own], lane->average[own]};
    float *sum = net->gain_sum[l];
    if (first) memset(sum, 0, sizeof(float) * 2 * length);
    for (int b = 0; b < n; b++)
        normalize_back(in, length, net->scale[l][b], p.w, net->unit[l] + b * ld, net->d[l] + b * ld, sum);
    if (!final) return;
    if (rule.kind == LAMB) {
        update_by_length(rule, sum, 2, length, 1, -1, &p);
        return;
    }
    if (rule.kind == LARS) rule.kind = MOMENTUM, rule.weight_decay = 0; /* as of all vectors */
    update(&rule, (vec *)sum, 2, length / VL, &p, 0, length);
}

/* The backward pass of a chunk, from the last layer to the first; on the final chunk of a batch each layer is updated
 * as soon as the layer below has its signal. */
static void backward(Net *net, int n, int first, int final, const Lane *lane, const Rule *rule) {
    const int whole = by_length(rule->kind), learn = final && !whole;
    for (int l = net->layers - 1; l >= 0; l--) {
        const int length = row_length(net, l), last = l == net->layers - 1, in = net->sizes[l];
        const Target t = {
            .out = net->sum[l], .before = first ? NULL : net->sum[l], .ld = length, .rule = rule,
            .weights = {lane->w[l], lane->m[l], lane->v[l], lane->average[l]}};
        if (l) send_back(net, l, n, first);
        if (l && net->norm_eps > 0) norm_back(net, l, n, first, final, lane, *rule);
        if (last) gradient_of_last(net, n, learn, t);
        else (learn ? turned_update : turned)(in + 1, length, n, net->input[l], net->d[l + 1], net->ld[l + 1], t);
        if (final && whole)
            update_by_length(*rule, net->sum[l], rows_of(net, l), length, last ? -1 : in, last ? in : -1, &t.weights);
    }
}
