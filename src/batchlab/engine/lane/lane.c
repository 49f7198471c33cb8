/* Train one lane of a sweep for some steps, on the core that calls: a chain of linear layers, or another network.
 *
 * A small network's weights fit in a core's own cache, so the fastest order is the plain one: take one network and run
 * all its steps. What a stack of networks pays for (a pass over memory for every operation) is then not paid: gradients
 * go from registers straight into the update. A batch is worked through in chunks, whose gradients add up: the working
 * set stays in cache for every batch size.
 *
 * One idea a file, each on those before it; compiled as one, so that the compiler sees through all of them.
 */
#include "vectors.c"      /* arithmetic on vectors, exp, tanh, a turned matrix */
#include "rules.c"        /* what a gradient does to the weights */
#include "trust.c"        /* the two rules that look at whole layers */
#include "products.c"     /* matrix products in tiles of registers */
#include "norm.c"         /* layer normalization */
#include "losses.c"       /* cross-entropy, squared error, accuracy */
#include "network.c"      /* the forward and backward pass of a chunk of examples through linear layers */
#include "tape.c"         /* other networks: a list of operations, and the tensors between them */
#include "convolution.c"  /* convolutions and linear layers */
#include "layers.c"       /* activations, sums, means, dropout, layer normalization, embeddings */
#include "norms.c"        /* batch and group normalization */
#include "attention.c"    /* causal self-attention */
#include "play.c"         /* the forward and backward pass of a tape, and its steps */

int vector_length(void) { return VL; }

/* Of the structures that Python hands over. */
const int sizes[] = {sizeof(Settings), sizeof(Data),   sizeof(Lane), sizeof(Op),
                     sizeof(Shape),    sizeof(Matrix), sizeof(Tape)};

/* Floats of scratch that a network of these sizes needs. */
long scratch_floats(int layers, int normed, const int *sizes) {
    Net net;
    lay_out(&net, &(Lane){.layers = layers, .norm_eps = normed, .sizes = sizes}, NULL);
    return net.used;
}

/* Step s takes the examples order[start[s]] ... order[start[s + 1] - 1] and the learning rate lr[s].
 * Adds the losses of the examples to *losses. Returns the steps made: fewer than `steps` where the mean loss of a
 * batch was not finite or above loss_bound, from which no update is made. */
int train(Lane *lane, const Data *data, const Settings *settings, const int32_t *order, const int64_t *start, int steps,
          const float *lr, double loss_bound, double *losses) {
    Net net;
    lay_out(&net, lane, lane->w);
    net.draw = lane->draw;
    FLUSH_DENORMALS();
    int s = 0, diverged = 0;
    for (; s < steps; s++) {
        const Rule rule = rule_at(settings, lr[s], lane->step + 1);
        const int64_t from = start[s], to = start[s + 1];
        double loss = 0;
        net.pass = lane->step + 1;
        for (int64_t at = from; at < to && !diverged; at += CHUNK) {
            const int n = to - at < CHUNK ? (int)(to - at) : CHUNK, final = at + n == to;
            net.place = at - from;
            choose(&net, n, order, at, data);
            forward(&net, n);
            loss += loss_and_signal(&net, n, data->label != NULL, 1.0f / (to - from));
            diverged = final && !(loss / (to - from) <= loss_bound);
            if (!diverged) backward(&net, n, at == from, final, lane, &rule);
        }
        *losses += loss;
        if (diverged) break;
        lane->step++;
    }
    RESTORE_DENORMALS();
    return s;
}

/* The sum of the losses over all examples, at the averaged weights (which are the weights where none are kept), and
 * through *right how many a classifier gets right. */
double evaluate(const Lane *lane, const Data *data, int64_t *right) {
    Net net;
    lay_out(&net, lane, lane->average);
    double loss = 0;
    *right = 0;
    for (int64_t at = 0; at < data->examples; at += CHUNK) {
        const int n = data->examples - at < CHUNK ? (int)(data->examples - at) : CHUNK;
        choose(&net, n, NULL, at, data);
        forward(&net, n);
        if (data->label) *right += classified(n, net.outputs, net.z, net.label);
        loss += loss_and_signal(&net, n, data->label != NULL, 1);
    }
    return loss;
}
