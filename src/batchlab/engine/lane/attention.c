/* Causal self-attention (Vaswani et al. 2017): in each head, position i takes the mean of the values v of all positions
 * j <= i, with weights softmax over j of q_i k_j / sqrt(size of a head).
 *
 * The weights are kept the other way round, a row a j and a column an i, so that a vector holds many positions i and the
 * softmax, over j, needs no sum across it.
 */

/* The room of one head: q, k, v and what comes out of it, `places` rows each, and the signals to them. */
typedef struct {
    int places, size, ld, across; /* positions, numbers of a head; both rounded up to whole vectors */
    float *q, *k, *v, *out, *dq, *dk, *dv;
    float *turned, *scores;           /* q or the signal, (size, across); (places, across) */
    const float **row;
} Head;
static Head head_of(float *room, int places, int size) {
    Head h = {places, size, padded(size), padded(places)};
    float **part[] = {&h.q, &h.k, &h.v, &h.out, &h.dq, &h.dk, &h.dv};
    for (int i = 0; i < 7; i++, room += places * h.ld) *part[i] = room;
    h.turned = room, h.scores = room + size * h.across;
    h.row = (const float **)(h.scores + places * h.across);
    return h;
}
static size_t floats_of_head(int places, int size) { /* a pointer takes the room of two floats, at most */
    return 7 * places * padded(size) + (size + places) * padded(places) + 2 * places;
}

static const float *const *rows_at(Head h, const float *matrix, int ld) {
    for (int i = 0; i < h.places; i++) h.row[i] = matrix + i * ld;
    return h.row;
}

/* Between the rows of a tensor and a head's: some of the columns. */
static void pick_up(Head h, float *to, const float *from, int ld) {
    for (int i = 0; i < h.places; i++)
        for (int j = 0; j < h.size; j++) to[i * h.ld + j] = from[i * ld + j];
}
static void put_down(Head h, float *to, const float *from, int ld) {
    for (int i = 0; i < h.places; i++)
        for (int j = 0; j < h.size; j++) to[i * ld + j] = from[i * h.ld + j];
}

static void softmax_of_the_past(Head h, float *weight) {
    const ivec place = PLACES;
    const vec zero = {0};
    const float sharp = 1 / sqrtf(h.size);
    for (int i = 0; i < h.places; i += VL) {
        const int last = i + VL < h.places ? i + VL : h.places; /* these positions see what lies before it */
        vec top = AT(weight + i), sum = zero;
        for (int j = 1; j < last; j++) {
            const vec v = AT(weight + j * h.across + i);
            top = pick((v > top) & (place + i >= j), v, top);
        }
        for (int j = 0; j < last; j++) {
            float *w = weight + j * h.across + i;
            sum += AT(w) = KEEP_IF(place + i >= j, vexp(sharp * (AT(w) - top)));
        }
        for (int j = 0; j < h.places; j++) {
            float *w = weight + j * h.across + i;
            if (j < last) AT(w) /= sum;
            else AT(w) = zero;
        }
    }
}

/* The signal to the weights becomes that to q k: w (d - sum over j of w d) / sqrt(size). */
static void softmax_back(Head h, const float *weight, float *d) {
    const float sharp = 1 / sqrtf(h.size);
    for (int i = 0; i < h.places; i += VL) {
        vec along = {0};
        for (int j = 0; j < h.places; j++) along += AT(weight + j * h.across + i) * AT(d + j * h.across + i);
        for (int j = 0; j < h.places; j++) {
            float *to = d + j * h.across + i;
            AT(to) = sharp * AT(weight + j * h.across + i) * (AT(to) - along);
        }
    }
}

/* x: rows of q, k and v of all heads; y: rows of what comes out of them. */
static void attend(Work *work, const Op *op, int n) {
    const Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const Head h = head_of(work->head, y->positions, y->channels / op->choice);
    float *weight = y->kept;
    for (int e = 0; e < n; e++)
        for (int start = 0; start < y->channels; start += h.size, weight += h.places * h.across) {
            const float *from = x->h + (size_t)e * h.places * x->ld + start;
            pick_up(h, h.q, from, x->ld);
            pick_up(h, h.k, from + y->channels, x->ld);
            pick_up(h, h.v, from + 2 * y->channels, x->ld);
            transpose(h.places, h.size, h.q, h.ld, h.turned, h.across);
            product(h.places, h.across, h.size, rows_at(h, h.k, h.ld), h.turned, h.across,
                    (Target){.out = weight, .ld = h.across});
            softmax_of_the_past(h, weight);
            turned(h.places, h.ld, h.places, rows_at(h, weight, h.across), h.v, h.ld, (Target){.out = h.out, .ld = h.ld});
            put_down(h, y->h + (size_t)e * h.places * y->ld + start, h.out, y->ld);
        }
}
static void attend_back(Work *work, const Op *op, int n) {
    Tensor *x = work->tensor + op->from, *y = work->tensor + op->to;
    const Head h = head_of(work->head, y->positions, y->channels / op->choice);
    const float *weight = y->kept;
    for (int e = 0; e < n; e++)
        for (int start = 0; start < y->channels; start += h.size, weight += h.places * h.across) {
            const float *from = x->h + (size_t)e * h.places * x->ld + start;
            float *to = x->d + (size_t)e * h.places * x->ld + start;
            pick_up(h, h.q, from, x->ld);
            pick_up(h, h.k, from + y->channels, x->ld);
            pick_up(h, h.v, from + 2 * y->channels, x->ld);
            pick_up(h, h.out, y->d + (size_t)e * h.places * y->ld + start, y->ld);
            transpose(h.places, h.size, h.out, h.ld, h.turned, h.across);
            product(h.places, h.across, h.size, rows_at(h, h.v, h.ld), h.turned, h.across,
                    (Target){.out = h.scores, .ld = h.across});
            softmax_back(h, weight, h.scores);
            product(h.places, h.ld, h.places, rows_at(h, weight, h.across), h.out, h.ld,
                    (Target){.out = h.dv, .ld = h.ld});
            product(h.places, h.ld, h.places, rows_at(h, h.scores, h.across), h.q, h.ld,
                    (Target){.out = h.dk, .ld = h.ld});
            turned(h.places, h.ld, h.places, rows_at(h, h.scores, h.across), h.k, h.ld,
                   (Target){.out = h.dq, .ld = h.ld});
            put_down(h, to, h.dq, x->ld);
            put_down(h, to + y->channels, h.dk, x->ld);
            put_down(h, to + 2 * y->channels, h.dv, x->ld);
        }
    x->reached = 1;
}
