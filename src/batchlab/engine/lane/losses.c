/* The losses of a chunk of examples, and what they send back: both are the mean over the examples of a batch.
 *
 * z: the network's outputs, (outputs, CHUNK), a column an example. In place they become the loss differentiated by
 * them, times `scale`, which is one over the batch size. What is returned is the sum of the losses of n examples.
 */
enum { CHUNK = 64 }; /* examples worked through at a time: what they need fits in the first cache */

/* Cross-entropy: log(sum exp(z)) - z[label], whose gradient is softmax(z) - onehot(label). One log for many. */
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

/* The squared error, whose mean is over examples and outputs. target[b]: what example b should give. */
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

/* How many columns have their largest output, the first of the largest as argmax has it, at their label. */
static int classified(int n, int classes, const float *z, const int32_t *label) {
    int right = 0;
    for (int b = 0; b < n; b++) {
        int best = 0;
        for (int j = 1; j < classes; j++)
            if (z[j * CHUNK + b] > z[best * CHUNK + b]) best = j;
        right += best == label[b];
    }
    return right;
}
