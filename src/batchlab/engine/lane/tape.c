/* Networks that are more than a chain of linear layers, as a tape: a list of operations, each of which reads a tensor
 * or two and makes one, in an order in which all can be done. Backwards, each operation sends the loss differentiated by
 * what it made to what it read; a tensor that several read adds up what they send.
 *
 * A tensor holds, for each example, `positions` rows of channels, rounded up to whole vectors, with zeros that stay
 * zeros: pixels of an image, times of a signal, tokens of a text; one row is a plain vector. Channels lie together, so
 * that a vector is several channels of one position, and sums over examples and positions need no sum across a vector.
 */
enum { CONVOLVE, BATCH_NORM, LAYER_NORM, ACTIVATE, ADD, MEAN, EMBED, ATTEND, DROP, GROUP_NORM };
enum { RELU_OF, TANH_OF, GELU_OF }; /* what ACTIVATE computes */
enum { BLOCK = 96 };                /* rows of a tensor that a product takes at a time */

/* One operation. from, other, to: the tensors read and made; `weight`: its first matrix of weights. */
typedef struct {
    int kind, from, other, to, weight;
    int relu;                             /* CONVOLVE and the norms but LAYER_NORM: whether ReLU follows */
    int kernel[2], stride[2], padding[2]; /* CONVOLVE: down and across */
    int choice;                           /* ACTIVATE: which; ATTEND: heads; DROP: which count of `draw`;
                                             GROUP_NORM: groups; BATCH_NORM: examples of a virtual batch, or 0 */
    float eps, momentum;                  /* of the norms */
    double rate;                          /* DROP: the share that is dropped */
    float *running;                       /* BATCH_NORM: running means, then variances (2, channels rounded up) */
} Op;

/* The tensor that an operation makes, or the data (the first). */
typedef struct {
    int channels, height, width;
} Shape;

/* A matrix of weights: rows of whole vectors. `bias`: the row that is a bias, or -1; `norm`: gains, then shifts. */
typedef struct {
    int rows, length, bias, norm;
} Matrix;

/* A lane, as Python hands it over. `piece`: how many examples are worked through together; with batch normalization
 * a whole batch. `judged`: how many at most in an evaluation. w, m, v, average: as in network.c, an array a matrix. */
typedef struct {
    int ops, tensors, matrices, piece, judged;
    const Op *op;
    const Shape *shape;
    const Matrix *matrix;
    float *const *w, *const *m, *const *v, *const *average;
    const int64_t *draw; /* where each dropout began to count its masks */
    void *scratch;
    int64_t step;
} Tape;

typedef struct {
    int channels, height, width, positions, ld;
    float *h, *d;  /* the values, and the loss differentiated by them */
    float *kept;   /* what the operation that made it keeps for its way back */
    int reached;   /* whether d holds something yet */
} Tensor;

/* The room to work on a piece. */
typedef struct {
    const Tape *tape;
    float *const *weight; /* w, or the average */
    Tensor *tensor;
    float **sum, **turned;         /* gradients; weights turned, for the signal backward */
    float *edges, *zeros, *back;   /* what a convolution sees at the edge, and beyond; what it sends to all it saw */
    const float **row;             /* pointers to the rows of a block */
    float *head;                   /* of attention */
    float *z;                      /* the outputs of CHUNK rows, turned */
    float *start, *end;            /* of the sums, which lie together */
    const Data *data;
    const int32_t *order;          /* the examples of the piece: order[0] ..., or first, first + 1 ... */
    int64_t first, place;          /* place: that of the piece in its batch */
    int learning;                  /* else batch normalization uses its running statistics, and nothing is dropped */
    char *scratch;
    size_t used;
} Work;

static void *take(Work *work, size_t bytes) {
    void *start = work->scratch ? work->scratch + work->used : NULL;
    work->used += (bytes + 63) / 64 * 64;
    return start;
}
static float *floats(Work *work, size_t n) { return take(work, sizeof(float) * (n + VL)); } /* copies run over */

static int64_t example(const Work *work, int e) { return work->order ? work->order[e] : work->first + e; }

/* The values of example e. */
static const float *values(const Work *work, const Tensor *x, int e) {
    if (x == work->tensor) return work->data->x + example(work, e) * x->positions * x->ld;
    return x->h + (size_t)e * x->positions * x->ld;
}

/* What an operation sends to a tensor: `n` floats at `d`, the first to arrive or more to add. */
INLINE void send(int add, int n, float *to, const float *d, float times) {
    for (int j = 0; j < n; j += VL) AT(to + j) = add ? AT(to + j) + times * AT(d + j) : times * AT(d + j);
}

/* Where ReLU let nothing through, nothing comes back. */
static void close_gates(const Tensor *y, int n) {
    const vec zero = {0};
    for (size_t j = 0; j < (size_t)n * y->positions * y->ld; j += VL)
        AT(y->d + j) = KEEP_IF(AT(y->h + j) > zero, AT(y->d + j));
}
