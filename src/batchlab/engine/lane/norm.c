/* Layer normalization (Ba, Kiros & Hinton 2016) of a row of n numbers, in place: u = (x - mean) / sqrt(variance + eps),
 * then gain u + shift. The row is padded to `length`, whole vectors, with zeros that stay zeros; `gain` holds the gains
 * and, `length` further on, the shifts.
 */

/* Keeps u for the backward pass, and returns 1 / sqrt(variance + eps). */
static float normalize(int n, int length, float eps, const float *gain, float *x, float *u) {
    const ivec place = PLACES;
    vec sum = {0}, squares = {0};
    for (int j = 0; j < length; j += VL) sum += AT(x + j);
    const float mean = total(sum) / n;
    for (int j = 0; j < length; j += VL) {
        AT(u + j) = KEEP_IF(place + j < n, AT(x + j) - mean);
        squares += AT(u + j) * AT(u + j);
    }
    const float scale = 1 / sqrtf(total(squares) / n + eps);
    for (int j = 0; j < length; j += VL) {
        AT(u + j) *= scale;
        AT(x + j) = AT(gain + j) * AT(u + j) + AT(gain + length + j);
    }
    return scale;
}

/* d: the loss differentiated by the row's outputs, then by its inputs: scale (e - mean(e) - u mean(e u)), e = gain d.
 * Adds to `sum` what it is by gains and shifts: d u and d. */
static void normalize_back(int n, int length, float scale, const float *gain, const float *u, float *d, float *sum) {
    const ivec place = PLACES;
    vec plain = {0}, along = {0};
    for (int j = 0; j < length; j += VL) {
        const vec e = AT(gain + j) * AT(d + j);
        AT(sum + j) += AT(d + j) * AT(u + j);
        AT(sum + length + j) += AT(d + j);
        AT(d + j) = e;
        plain += e;
        along += e * AT(u + j);
    }
    const float mean = total(plain) / n, slant = total(along) / n;
    for (int j = 0; j < length; j += VL)
        AT(d + j) = KEEP_IF(place + j < n, scale * (AT(d + j) - mean - slant * AT(u + j)));
}
