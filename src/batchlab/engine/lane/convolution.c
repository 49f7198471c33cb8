/* Convolutions, and linear layers, which are convolutions that look at one position. One row of a product is a position
 * of the output: what the kernel sees from there, line by line. A line lies together in the input and is read in place,
 * but at the edge, where it is copied and filled up with zeros.
 *
 * The weights are (kernel down, kernel across, channels read, channels made), the last two rounded up to whole vectors
 * (but for the data's channels), and a last row for the bias.
 */
static int seen_in_line(const Op *op, const Tensor *x) { return op->kernel[1] * x->ld; }
static int seen_in_all(const Op *op, const Tensor *x) { return op->kernel[0] * seen_in_line(op, x); }
static int looks_at_one(const Op *op) {
    return op->kernel[0] * op->kernel[1] == 1 && op->stride[0] * op->stride[1] == 1;
}

/* A position of the output: of which example, how far down and across. */
typedef struct {
    int example, down, across;
} Position;
static Position position(const Tensor *y, int64_t row) {
    const int p = (int)(row % y->positions);
    return (Position){(int)(row / y->positions), p / y->width, p % y->width};
}
INLINE int step_on(const Tensor *y, Position *at) { /* whether into the next example */
    if (++at->across < y->width) return 0;
    at->across = 0;
    if (++at->down < y->height) return 0;
    at->down = 0, at->example++;
    return 1;
}

/* What the kernel sees along an axis: inputs first .. first + kernel - 1, of which those from `low` on and below `high`
 * exist. */
typedef struct {
    int first, low, high;
} Span;
INLINE Span span(const Op *op, int axis, int at, int length) {
    const int first = at * op->stride[axis] - op->padding[axis], beyond = length - first;
    return (Span){first, first < 0 ? -first : 0, beyond < op->kernel[axis] ? beyond : op->kernel[axis]};
}

/* Whole vectors: what runs over is written again by what comes next. */
INLINE void copy(float *to, const float *from, int n) { for (int j = 0; j < n; j += VL) AT(to + j) = AT(from + j); }
INLINE void clear(float *to, int n) { for (int j = 0; j < n; j += VL) AT(to + j) = (vec){0}; }

/* Point work->row at what is seen from the rows r0, r0 + 1, ...: at the first line of each, then at the second. */
static void look(Work *work, const Op *op, const Tensor *x, const Tensor *y, int64_t r0, int rows) {
    const int line = seen_in_line(op, x);
    float *to = work->edges;
    Position at = position(y, r0);
    const float *from = values(work, x, at.example);
    for (int r = 0; r < rows; r++) {
        const Span down = span(op, 0, at.down, x->height), side = span(op, 1, at.across, x->width);
        const int inside = side.high - side.low == op->kernel[1];
        for (int i = 0; i < op->kernel[0]; i++) {
            const float *found = from + ((down.first + i) * x->width + side.first) * x->ld;
            if (i < down.low || i >= down.high) found = work->zeros;
            else if (!inside) {
                if (side.low) clear(to, side.low * x->ld);
                copy(to + side.low * x->ld, found + side.low * x->ld, (side.high - side.low) * x->ld);
                if (side.high < op->kernel[1]) clear(to + side.high * x->ld, (op->kernel[1] - side.high) * x->ld);
                found = to, to += line;
            }
            work->row[i * rows + r] = found;
        }
        if (step_on(y, &at) && r + 1 < rows) from = values(work, x, at.example);
    }
}

/* The way back: what is sent to all that was seen, added up where it came from. */
static void send_to_seen(Work *work, const Op *op, const Tensor *x, const Tensor *y, int64_t r0, int rows) {
    const int line = seen_in_line(op, x);
    const float *from = work->back;
    Position at = position(y, r0);
    for (int r = 0; r < rows; r++, step_on(y, &at)) {
        float *to = x->d + (size_t)at.example * x->positions * x->ld;
        const Span down = span(op, 0, at.down, x->height), side = span(op, 1, at.across, x->width);
        for (int i = 0; i < op->kernel[0]; i++, from += line)
            if (i >= down.low && i < down.high)
                send(1, (side.high - side.low) * x->ld, to + ((down.first + i) * x->width + side.first + side.low) * x->ld,
                     from + side.low * x->ld, 1);
    }
}

static void convolve(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const int seen = seen_in_all(op, x);
    const float *w = work->weight[op->weight];
    const int64_t all = (int64_t)n * y->positions;
    for (int64_t r = 0; r < all; r += BLOCK) {
        const int rows = all - r < BLOCK ? (int)(all - r) : BLOCK;
        look(work, op, x, y, r, rows);
        (op->relu ? product_relu : product)(
            rows, y->ld, seen_in_line(op, x), work->row, w, y->ld,
            (Target){.out = y->h + r * y->ld, .bias = w + seen * y->ld, .more = op->kernel[0] - 1, .ld = y->ld});
    }
}

static void add_rows(int rows, int ld, const float *d, float *sum) {
    for (int j = 0; j < ld; j += VL) {
        vec all = AT(sum + j);
        for (int b = 0; b < rows; b++) all += AT(d + b * ld + j);
        AT(sum + j) = all;
    }
}

static void convolve_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from;
    const Tensor *y = work->tensor + op->to;
    const int line = seen_in_line(op, x), seen = seen_in_all(op, x), alone = looks_at_one(op), ld = y->ld;
    float *sum = work->sum[op->weight];
    const int64_t all = (int64_t)n * y->positions;
    if (op->relu) close_gates(y, n);
    if (op->from && !alone && !x->reached) memset(x->d, 0, sizeof(float) * n * x->positions * x->ld);
    for (int64_t r = 0; r < all; r += BLOCK) {
        const int rows = all - r < BLOCK ? (int)(all - r) : BLOCK;
        const float *d = y->d + r * ld;
        look(work, op, x, y, r, rows);
        for (int i = 0; i < op->kernel[0]; i++) {
            float *part = sum + i * line * ld;
            turned(line, ld, rows, work->row + i * rows, d, ld, (Target){.out = part, .before = part, .ld = ld});
        }
        add_rows(rows, ld, d, sum + seen * ld);
        if (!op->from) continue; /* nobody asks for the signal to the data */
        for (int b = 0; b < rows; b++) work->row[b] = d + b * ld;
        float *to = alone ? x->d + r * x->ld : work->back;
        product(rows, seen, y->channels, work->row, work->turned[op->weight], seen,
                (Target){.out = to, .before = alone && x->reached ? to : NULL, .ld = seen});
        if (!alone) send_to_seen(work, op, x, y, r, rows);
    }
    x->reached = 1;
}
