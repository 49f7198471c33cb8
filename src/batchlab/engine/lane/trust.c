/* LARS and LAMB: a step is as long as the weights say, for each tensor apart. So they wait for a layer's whole
 * gradient, take the lengths, and leave the rest to momentum and to plain descent.
 */
static int by_length(int kind) { return kind == LARS || kind == LAMB; }

/* LAMB's direction: m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = m / (sqrt(v) + eps) + weight_decay w */
INLINE vec lamb_direction(Rule r, vec g, vec w, vec *m, vec *v) {
    *m = r.b1 * *m + r.c1 * g;
    *v = r.b2 * *v + r.c2 * g * g;
    return *m / (root(*v) + r.eps) + r.weight_decay * w;
}

/* LARS: trust |w| / (|g| + weight_decay |w|), of biases 1. LAMB: min(|w|, 10) / (|u| + eps). 1 where a length is 0. */
static float trust(const Rule *r, int bias, float w, float g) {
    const int lars = r->kind == LARS;
    if (lars) g += r->weight_decay * w;
    if ((lars && bias) || !(w > 0 && g > 0)) return 1;
    return lars ? r->trust * w / g : fminf(w, 10) / (g + r->eps);
}

/* Which lanes of the vector at (y, x) are the layer's bias: its row `bias_row` or its column `bias_column`, the other
 * of which is -1. */
INLINE ivec bias_at(int y, int x, int bias_row, int bias_column) {
    const ivec place = PLACES;
    return y == bias_row ? place >= 0 : place + x == bias_column;
}

/* One step of a layer of `rows` rows, ld floats long; g, its gradient, is used up. */
static void update_by_length(Rule r, float *g, int rows, int ld, int bias_row, int bias_column, const Weights *p) {
    vec w2[2] = {{0}, {0}}, g2[2] = {{0}, {0}}; /* squares of the weights' lengths, then of the bias's */
    for (int y = 0, i = 0; y < rows; y++)
        for (int x = 0; x < ld; x += VL, i += VL) {
            const ivec bias = bias_at(y, x, bias_row, bias_column);
            const vec w = AT(p->w + i);
            AT(g + i) += r.l1 * sign(w);
            if (r.kind == LAMB) AT(g + i) = lamb_direction(r, AT(g + i), w, &AT(p->m + i), &AT(p->v + i));
            w2[0] += KEEP_IF(~bias, w * w), g2[0] += KEEP_IF(~bias, AT(g + i) * AT(g + i));
            w2[1] += KEEP_IF(bias, w * w), g2[1] += KEEP_IF(bias, AT(g + i) * AT(g + i));
        }
    float by[2];
    for (int k = 0; k < 2; k++) by[k] = trust(&r, k, sqrtf(total(w2[k])), sqrtf(total(g2[k])));
    const float decay = r.kind == LARS ? r.weight_decay : 0; /* LAMB's is in its direction */
    for (int y = 0, i = 0; y < rows; y++)
        for (int x = 0; x < ld; x += VL, i += VL)
            AT(g + i) = pick(bias_at(y, x, bias_row, bias_column), by[1] * AT(g + i),
                             by[0] * (AT(g + i) + decay * AT(p->w + i)));
    r.kind = r.kind == LARS ? MOMENTUM : SGD;
    r.weight_decay = r.l1 = 0;
    update(&r, (vec *)g, rows, ld / VL, p, 0, ld);
}
