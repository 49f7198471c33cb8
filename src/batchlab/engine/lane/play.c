/* A tape, played forward and backward, and the steps of training it. */
/* A tape without scratch is only measured. */
static void lay_out_tape(Work *work, const Tape *tape, float *const *weight) {
    char *scratch = tape->scratch;
    *work = (Work){.tape = tape, .weight = weight, .scratch = scratch};
    work->tensor = take(work, sizeof(Tensor) * tape->tensors);
    work->sum = take(work, sizeof(float *) * tape->matrices);
    work->turned = take(work, sizeof(float *) * tape->matrices);
    Tensor tensor[tape->tensors]; /* needed to measure, too, when work->tensor has no room yet */
    for (int i = 0; i < tape->tensors; i++) {
        const Shape s = tape->shape[i];
        const int places = s.height * s.width, ld = i ? padded(s.channels) : s.channels;
        const size_t all = i ? (size_t)tape->piece * places * ld : 0;
        float *h = floats(work, all), *d = floats(work, all);
        tensor[i] = (Tensor){s.channels, s.height, s.width, places, ld, h, d};
    }
    int lines = 1, most = 0;
    size_t head = 0;
    for (const Op *op = tape->op; op < tape->op + tape->ops; op++) {
        const Tensor *x = tensor + op->from, *y = tensor + op->to;
        const size_t rows = (size_t)tape->piece * y->positions;
        const int seen = op->kind == CONVOLVE ? seen_in_all(op, x) : 0;
        size_t kept = 0;
        if (op->kind == LAYER_NORM) kept = rows * (y->ld + 1);
        if (op->kind == BATCH_NORM) kept = 2 * virtual_batches(op, tape->piece) * y->ld;
        if (op->kind == GROUP_NORM) kept = 4 * tape->piece * y->ld;
        if (op->kind == DROP) kept = rows * y->ld;
        if (op->kind == ATTEND) kept = rows * op->choice * padded(y->positions);
        tensor[op->to].kept = floats(work, kept);
        float *turned = floats(work, seen ? (size_t)y->channels * seen : 0);
        if (scratch && seen) work->turned[op->weight] = turned;
        if (seen > most) most = seen;
        if (seen && op->kernel[0] > lines) lines = op->kernel[0];
        if (op->kind == ATTEND) {
            const size_t room = floats_of_head(y->positions, y->channels / op->choice);
            if (room > head) head = room;
        }
    }
    work->edges = floats(work, BLOCK * most), work->back = floats(work, BLOCK * most), work->zeros = floats(work, most);
    work->row = take(work, sizeof(float *) * BLOCK * lines);
    work->head = floats(work, head);
    work->z = floats(work, (size_t)tensor[tape->tensors - 1].ld * CHUNK);
    work->start = floats(work, 0);
    for (int i = 0; i < tape->matrices; i++) {
        float *sum = floats(work, (size_t)tape->matrix[i].rows * tape->matrix[i].length);
        if (scratch) work->sum[i] = sum;
    }
    work->end = floats(work, 0);
    if (scratch) memcpy(work->tensor, tensor, sizeof tensor);
}

/* The outputs of the chosen examples: the last tensor. */
static void play(Work *work, int n) {
    for (const Op *op = work->tape->op; op < work->tape->op + work->tape->ops; op++) switch (op->kind) {
        case CONVOLVE: convolve(work, op, n); break;
        case BATCH_NORM: batch_norm(work, op, n); break;
        case LAYER_NORM: layer_norm(work, op, n); break;
        case ACTIVATE: activate_all(work, op, n); break;
        case ADD: add(work, op, n); break;
        case MEAN: mean_of(work, op, n); break;
        case EMBED: embed(work, op, n); break;
        case ATTEND: attend(work, op, n); break;
        case DROP: drop_some(work, op, n); break;
        case GROUP_NORM: group_norm(work, op, n); break;
        }
}

/* From the signal at the last tensor: adds the gradient of the piece to the sums. */
static void rewind_tape(Work *work, int n) {
    for (int i = 0; i < work->tape->tensors - 1; i++) work->tensor[i].reached = 0;
    for (const Op *op = work->tape->op + work->tape->ops; op-- > work->tape->op;) switch (op->kind) {
        case CONVOLVE: convolve_back(work, op, n); break;
        case BATCH_NORM: batch_norm_back(work, op, n); break;
        case LAYER_NORM: layer_norm_back(work, op, n); break;
        case ACTIVATE: activate_back(work, op, n); break;
        case ADD: add_back(work, op, n); break;
        case MEAN: mean_back(work, op, n); break;
        case EMBED: embed_back(work, op, n); break;
        case ATTEND: attend_back(work, op, n); break;
        case DROP: drop_back(work, op, n); break;
        case GROUP_NORM: group_norm_back(work, op, n); break;
        }
}

/* The sum of the losses of n examples (of a text: of its tokens), and the signal at the last tensor, times `scale`; how
 * many are right is added to *right, if that is not NULL. */
static double judge(Work *work, int n, double scale, int64_t *right) {
    const Tensor *y = work->tensor + work->tape->tensors - 1;
    const Data *data = work->data;
    const int64_t all = (int64_t)n * y->positions;
    double loss = 0;
    for (int64_t r = 0; r < all; r += CHUNK) {
        const int rows = all - r < CHUNK ? (int)(all - r) : CHUNK;
        int32_t label[CHUNK];
        const float *target[CHUNK];
        for (int b = 0; b < rows; b++) {
            const int64_t at = example(work, (int)((r + b) / y->positions)) * y->positions + (r + b) % y->positions;
            if (data->label) label[b] = data->label[at];
            else target[b] = data->target + at * y->channels;
        }
        transpose(rows, y->channels, y->h + r * y->ld, y->ld, work->z, CHUNK);
        if (right && data->label) *right += classified(rows, y->channels, work->z, label);
        loss += data->label ? cross_entropy(rows, y->channels, work->z, label, scale)
                            : squared_error(rows, y->channels, work->z, target, scale);
        transpose(y->channels, rows, work->z, CHUNK, y->d + r * y->ld, y->ld);
    }
    return loss;
}

/* Weights turned once a batch, for the way back. */
static void turn_weights(Work *work) {
    for (const Op *op = work->tape->op; op < work->tape->op + work->tape->ops; op++) {
        if (op->kind != CONVOLVE || !op->from) continue;
        const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
        const int seen = seen_in_all(op, x);
        transpose(seen, y->channels, work->weight[op->weight], y->ld, work->turned[op->weight], seen);
    }
}

static void learn(const Work *work, const Rule *rule) {
    const Tape *tape = work->tape;
    for (int i = 0; i < tape->matrices; i++) {
        const Matrix m = tape->matrix[i];
        const Weights p = {tape->w[i], tape->m[i], tape->v[i], tape->average[i]};
        Rule r = *rule;
        if (m.norm && r.kind == LARS) r.kind = MOMENTUM, r.weight_decay = 0; /* as of all vectors */
        if (by_length(r.kind)) update_by_length(r, work->sum[i], m.rows, m.length, m.bias, -1, &p);
        else update(&r, (vec *)work->sum[i], m.rows, m.length / VL, &p, 0, m.length);
    }
}

/* Bytes of scratch that a tape needs; they are zero when first used. */
size_t scratch_of_tape(const Tape *tape) {
    Work work;
    Tape bare = *tape;
    bare.scratch = NULL;
    lay_out_tape(&work, &bare, NULL);
    return work.used;
}

/* As `train` and `evaluate`, below. */
int train_tape(Tape *tape, const Data *data, const Settings *settings, const int32_t *order, const int64_t *start,
               int steps, const float *lr, double loss_bound, double *losses) {
    Work work;
    lay_out_tape(&work, tape, tape->w);
    work.data = data, work.learning = 1;
    FLUSH_DENORMALS();
    int s = 0, diverged = 0;
    for (; s < steps && !diverged; s++) {
        const Rule rule = rule_at(settings, lr[s], tape->step + 1);
        const int64_t from = start[s], to = start[s + 1];
        double loss = 0;
        const double scale = 1.0 / ((to - from) * work.tensor[tape->tensors - 1].positions);
        memset(work.start, 0, (char *)work.end - (char *)work.start);
        turn_weights(&work);
        for (int64_t at = from; at < to && !diverged; at += tape->piece) {
            const int n = to - at < tape->piece ? (int)(to - at) : tape->piece;
            work.order = order + at, work.place = at - from;
            play(&work, n);
            loss += judge(&work, n, scale, NULL);
            diverged = at + n == to && !(loss * scale <= loss_bound);
            if (!diverged) rewind_tape(&work, n);
        }
        *losses += loss * scale * (to - from);
        if (diverged) break;
        learn(&work, &rule);
        tape->step++;
    }
    RESTORE_DENORMALS();
    return s;
}

double evaluate_tape(const Tape *tape, const Data *data, int64_t *right) {
    Work work;
    lay_out_tape(&work, tape, tape->average);
    work.data = data, *right = 0;
    double loss = 0;
    for (int64_t at = 0; at < data->examples; at += tape->judged) {
        const int n = data->examples - at < tape->judged ? (int)(data->examples - at) : tape->judged;
        work.first = at;
        play(&work, n);
        loss += judge(&work, n, 1, right);
    }
    return loss;
}
