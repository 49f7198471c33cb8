/* Normalizations over more than a row. Both take x to u = (x - mean) / sqrt(variance + eps), then to gain u + shift;
 * mean and variance of a channel are over all examples and positions of a batch (Ioffe & Szegedy 2015), or over the
 * positions and channels of its group in one example (Wu & He 2018). The way back is layer normalization's: with
 * e = gain d, 1 / sqrt(variance + eps) times e - mean(e) - u mean(e u).
 *
 * Sums over many rows are taken in parts, which keeps their rounding small.
 */
enum { PART = 64 };
#define SUM_OF_ROWS(sum, what)                                       \
    for (size_t r = 0; r < rows; r += PART) {                        \
        vec part = {0};                                              \
        for (size_t i = r; i < rows && i < r + PART; i++) part += what; \
        sum += part;                                                 \
    }

/* `rows` rows of a channel's numbers, from x to y; kept is the mean, then the scale. */
static void normalize_rows(const Op *op, int learning, size_t rows, size_t ld, const float *gain, const float *x, float *y,
                           float *kept) {
    const vec zero = {0};
    for (size_t j = 0; j < ld; j += VL) {
        vec mean = AT(op->running + j), variance = AT(op->running + ld + j);
        if (learning) {
            mean = variance = zero;
            SUM_OF_ROWS(mean, AT(x + i * ld + j))
            mean /= (float)rows;
            SUM_OF_ROWS(variance, (AT(x + i * ld + j) - mean) * (AT(x + i * ld + j) - mean))
            variance /= (float)rows;
            const vec unbiased = variance * ((float)rows / (rows - 1));
            AT(op->running + j) += op->momentum * (mean - AT(op->running + j));
            AT(op->running + ld + j) += op->momentum * (unbiased - AT(op->running + ld + j));
        }
        const vec scale = 1.0f / root(variance + op->eps), steep = AT(gain + j) * scale;
        const vec shift = AT(gain + ld + j) - mean * steep;
        AT(kept + j) = mean, AT(kept + ld + j) = scale;
        for (size_t i = j; i < rows * ld; i += ld) {
            const vec v = AT(x + i) * steep + shift;
            AT(y + i) = op->relu ? relu(v) : v;
        }
    }
}
static void normalize_rows_back(int add, size_t rows, size_t ld, const float *gain, const float *x, const float *kept,
                                float *to, const float *d, float *sum) {
    for (size_t j = 0; j < ld; j += VL) {
        const vec mean = AT(kept + j), scale = AT(kept + ld + j), steep = AT(gain + j) * scale;
        vec plain = {0}, along = {0};
        SUM_OF_ROWS(plain, AT(d + i * ld + j))
        SUM_OF_ROWS(along, AT(d + i * ld + j) * (AT(x + i * ld + j) - mean))
        along *= scale;
        AT(sum + j) += along, AT(sum + ld + j) += plain;
        plain /= (float)rows, along *= scale / (float)rows;
        for (size_t i = j; i < rows * ld; i += ld) {
            const vec back = steep * (AT(d + i) - plain - (AT(x + i) - mean) * along);
            send(add, VL, to + i, (const float *)&back, 1);
        }
    }
}

/* Batch normalization, of the whole batch or of virtual ones whose sizes differ by one at most (Hoffer et al. 2017). */
static int virtual_batches(const Op *op, int n) { return op->choice ? (n + op->choice - 1) / op->choice : 1; }
static int begins(int n, int batches, int b) { return b * (n / batches) + (b < n % batches ? b : n % batches); }
static void batch_norm(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const int batches = work->learning ? virtual_batches(op, n) : 1, example = x->positions * x->ld;
    for (int b = 0; b < batches; b++) {
        const int e = begins(n, batches, b), size = begins(n, batches, b + 1) - e;
        normalize_rows(op, work->learning, (size_t)size * x->positions, x->ld, work->weight[op->weight],
                       x->h + (size_t)e * example, y->h + (size_t)e * example, y->kept + 2 * b * y->ld);
    }
}
static void batch_norm_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const int batches = virtual_batches(op, n), example = x->positions * x->ld;
    if (op->relu) close_gates(y, n);
    for (int b = 0; b < batches; b++) {
        const int e = begins(n, batches, b), size = begins(n, batches, b + 1) - e;
        const size_t at = (size_t)e * example;
        normalize_rows_back(x->reached, (size_t)size * x->positions, x->ld, work->weight[op->weight], x->h + at,
                            y->kept + 2 * b * y->ld, x->d + at, y->d + at, work->sum[op->weight]);
    }
    x->reached = 1;
}

/* For each channel, the mean of its group: `sums` holds the channels' sums over `rows` rows. */
static void mean_of_groups(const Tensor *x, int groups, float *sums) {
    const int size = x->channels / groups;
    for (int g = 0; g < x->channels; g += size) {
        float all = 0;
        for (int c = g; c < g + size; c++) all += sums[c];
        for (int c = g; c < g + size; c++) sums[c] = all / (size * x->positions);
    }
}

/* Group normalization; kept is, of each example, the channels' means, scales, and room for the way back. */
static void group_norm(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const float *gain = work->weight[op->weight];
    const vec zero = {0};
    const size_t rows = x->positions, ld = x->ld;
    for (int e = 0; e < n; e++) {
        const float *from = x->h + e * rows * ld;
        float *to = y->h + e * rows * ld, *mean = y->kept + 4 * e * ld, *scale = mean + ld;
        for (size_t j = 0; j < ld; j += VL) {
            vec sum = zero;
            SUM_OF_ROWS(sum, AT(from + i * ld + j))
            AT(mean + j) = sum;
        }
        mean_of_groups(x, op->choice, mean);
        for (size_t j = 0; j < ld; j += VL) {
            vec sum = zero;
            SUM_OF_ROWS(sum, (AT(from + i * ld + j) - AT(mean + j)) * (AT(from + i * ld + j) - AT(mean + j)))
            AT(scale + j) = sum;
        }
        mean_of_groups(x, op->choice, scale);
        for (size_t j = 0; j < ld; j += VL) {
            const vec sharp = AT(scale + j) = 1.0f / root(AT(scale + j) + op->eps);
            for (size_t i = j; i < rows * ld; i += ld) {
                const vec v = AT(gain + j) * sharp * (AT(from + i) - AT(mean + j)) + AT(gain + ld + j);
                AT(to + i) = op->relu ? relu(v) : v;
            }
        }
    }
}
static void group_norm_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const float *gain = work->weight[op->weight];
    float *sum = work->sum[op->weight];
    const size_t rows = x->positions, ld = x->ld;
    if (op->relu) close_gates(y, n);
    for (int e = 0; e < n; e++) {
        const float *from = x->h + e * rows * ld, *d = y->d + e * rows * ld;
        float *to = x->d + e * rows * ld, *mean = y->kept + 4 * e * ld, *scale = mean + ld;
        float *plain = mean + 2 * ld, *along = mean + 3 * ld;
        for (size_t j = 0; j < ld; j += VL) {
            vec of_d = {0}, of_du = {0};
            SUM_OF_ROWS(of_d, AT(d + i * ld + j))
            SUM_OF_ROWS(of_du, AT(d + i * ld + j) * (AT(from + i * ld + j) - AT(mean + j)))
            of_du *= AT(scale + j);
            AT(sum + j) += of_du, AT(sum + ld + j) += of_d;
            AT(plain + j) = AT(gain + j) * of_d, AT(along + j) = AT(gain + j) * of_du;
        }
        mean_of_groups(x, op->choice, plain);
        mean_of_groups(x, op->choice, along);
        for (size_t j = 0; j < ld; j += VL)
            for (size_t i = j; i < rows * ld; i += ld) {
                const vec u = (AT(from + i) - AT(mean + j)) * AT(scale + j);
                const vec back = AT(scale + j) * (AT(gain + j) * AT(d + i) - AT(plain + j) - u * AT(along + j));
                send(x->reached, VL, to + i, (const float *)&back, 1);
            }
    }
    x->reached = 1;
}
