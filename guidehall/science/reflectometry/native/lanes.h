/* The engine's inner loops for one instruction set. engine.c includes this file once for each, having defined
 * LANES (doubles in a vector), NAME(x) (a suffix for the functions) and VSQRT(x).
 *
 * Everything is float64. A vector holds neighbouring points of one curve, and each point's whole recursion
 * stays in registers.
 */

typedef double NAME(vd) __attribute__((vector_size(8 * LANES)));
typedef int64_t NAME(vi) __attribute__((vector_size(8 * LANES)));
#define vd NAME(vd)
#define vi NAME(vi)
#define FN static inline __attribute__((always_inline))

FN vd NAME(load)(const double *from) {
    vd v;
    memcpy(&v, from, sizeof v);
    return v;
}
FN void NAME(store)(double *to, vd v, int count) { memcpy(to, &v, 8 * (size_t)count); }
FN vd NAME(all)(double x) { return (vd){0} + x; }
FN vd NAME(pick)(vi mask, vd yes, vd no) { return (vd)(((vi)yes & mask) | ((vi)no & ~mask)); }
FN vd NAME(abs)(vd x) { return (vd)((vi)x & (vi)(((vi){0}) + INT64_MAX)); }
/* What is no number in `a` stays none. */
FN vd NAME(min)(vd a, vd b) { return NAME(pick)(b < a, b, a); }
FN vd NAME(max)(vd a, vd b) { return NAME(pick)(b > a, b, a); }
FN int NAME(any)(vi mask) {
    int64_t found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found != 0;
}

#define load NAME(load)
#define store NAME(store)
#define all NAME(all)
#define pick NAME(pick)
#define vabs NAME(abs)
#define vmin NAME(min)
#define vmax NAME(max)
#define any NAME(any)

/* Adding this leaves the nearest integer in the low bits. */
#define MAGIC 6755399441055744.0

/* Relative error below 3e-16; results below the normal numbers become 0. */
FN vd NAME(exp)(vd x) {
    x = vmin(vmax(x, all(-708.0)), all(709.0));
    vd shifted = x * 1.4426950408889634 + MAGIC;
    vd n = shifted - MAGIC;
    vd r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10;
    vd r2 = r * r;
    /* Taylor to the twelfth power, in halves: |r| is at most ln(2)/2. */
    vd low = 1.0 + r + r2 * (0.5 + r * (1.0 / 6) + r2 * (1.0 / 24 + r * (1.0 / 120)));
    vd high = 1.0 / 720 + r * (1.0 / 5040) +
              r2 * (1.0 / 40320 + r * (1.0 / 362880) +
                    r2 * (1.0 / 3628800 + r * (1.0 / 39916800) + r2 * (1.0 / 479001600)));
    vd p = low + r2 * r2 * r2 * high;
    return (vd)((vi)p + ((vi)shifted << 52));
}
#define vexp NAME(exp)

/* Error below 2e-16 for |x| up to a million. */
FN void NAME(sincos)(vd x, vd *sine, vd *cosine) {
    vd shifted = x * 0.63661977236758134308 + MAGIC;
    vd n = shifted - MAGIC;
    vd r = ((x - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) -
           n * 2.02226624879595063154e-21;
    vd r2 = r * r;
    vd s = r + r * r2 *
                   (-1.66666666666666324348e-01 +
                    r2 * (8.33333333332248946124e-03 +
                          r2 * (-1.98412698298579493134e-04 +
                                r2 * (2.75573137070700676789e-06 +
                                      r2 * (-2.50507602534068634195e-08 + r2 * 1.58969099521155010221e-10)))));
    vd c = 1.0 - 0.5 * r2 +
           r2 * r2 *
               (4.16666666666666019037e-02 +
                r2 * (-1.38888888888741095749e-03 +
                      r2 * (2.48015872894767294178e-05 +
                            r2 * (-2.75573143513906633035e-07 +
                                  r2 * (2.08757232129817482790e-09 + r2 * -1.13596475577881948265e-11)))));
    vi quadrant = (vi)shifted;
    vi swap = -(quadrant & 1);
    vd ss = pick(swap, c, s), cc = pick(swap, s, c);
    *sine = (vd)((vi)ss ^ ((quadrant & 2) << 62));
    *cosine = (vd)((vi)cc ^ (((quadrant + 1) & 2) << 62));
}
#define vsincos NAME(sincos)

typedef struct {
    vd re, im;
} NAME(vc);
#define vc NAME(vc)

FN vc NAME(mul)(vc a, vc b) { return (vc){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
FN vc NAME(div)(vc a, vc b) {
    vd scale = 1.0 / (b.re * b.re + b.im * b.im);
    return (vc){(a.re * b.re + a.im * b.im) * scale, (a.im * b.re - a.re * b.im) * scale};
}
FN vc NAME(plus)(vc a, vc b) { return (vc){a.re + b.re, a.im + b.im}; }
FN vc NAME(minus)(vc a, vc b) { return (vc){a.re - b.re, a.im - b.im}; }
FN vc NAME(times)(vd s, vc a) { return (vc){s * a.re, s * a.im}; }
#define mul NAME(mul)
#define cdiv NAME(div)
#define plus NAME(plus)
#define minus NAME(minus)
#define times NAME(times)

/* The root with Im >= 0 of x + iy, y >= 0. */
FN vc NAME(root)(vd x, double y) {
    vd large = VSQRT(0.5 * (VSQRT(x * x + y * y) + vabs(x)));
    vd small = 0.5 * y / vmax(large, all(1e-150));
    vi forward = x >= 0.0;
    return (vc){pick(forward, large, small), pick(forward, small, large)};
}
#define root NAME(root)

FN vc NAME(cexp)(vc z) {
    vd size = vexp(z.re), s, c;
    vsincos(z.im, &s, &c);
    return (vc){size * c, size * s};
}
#define vcexp NAME(cexp)

/* What one interface adds to the amplitude from below it: F = (above - below)/(above + below) exp(-2 above below
 * sigma^2), r = (F + A)/(1 + F A), written with one division. */
FN vc NAME(join)(vc above, vc below, double sigma, vc A, int real) {
    vc sum = plus(above, below), fresnel;
    if (real) {
        vd f = above.re - below.re;
        if (sigma != 0.0) f *= vexp(above.re * below.re * (-2.0 * sigma * sigma));
        fresnel = (vc){f, all(0.0)};
        vc top = {f + A.re * sum.re, A.im * sum.re}, bottom = {sum.re + f * A.re, f * A.im};
        return cdiv(top, bottom);
    }
    fresnel = minus(above, below);
    if (sigma != 0.0) fresnel = mul(fresnel, vcexp(times(all(-2.0 * sigma * sigma), mul(above, below))));
    return cdiv(plus(fresnel, mul(A, sum)), plus(sum, mul(fresnel, A)));
}

FN vc NAME(travel)(vc k, double thickness, int real) {
    if (real) {
        vc e;
        vsincos(k.re * (2.0 * thickness), &e.im, &e.re);
        return e;
    }
    return vcexp((vc){k.im * (-2.0 * thickness), k.re * (2.0 * thickness)});
}

/* |r|^2 of one vector of points; `real` promises that every wavenumber is real. */
FN vd NAME(sharp)(const Film *film, vd k0, int real) {
    vd k0_squared = k0 * k0;
    const int last = film->media - 1;
    vc below = {all(0.0), all(0.0)}, r = {all(0.0), all(0.0)};
    for (int j = last; j >= 0; j--) {
        vc k;
        if (j == 0)
            k = (vc){k0, all(0.0)};
        else if (real)
            k = (vc){VSQRT(k0_squared - film->contrast[j]), all(0.0)};
        else
            k = root(k0_squared - film->contrast[j], film->absorption[j]);
        if (j < last) {
            if (j < last - 1) r = mul(r, NAME(travel)(below, film->thickness[j], real));
            r = NAME(join)(k, below, film->roughness[j], r, real);
        }
        below = k;
    }
    return r.re * r.re + r.im * r.im;
}

FN vd NAME(points_at)(const double *from, int n, int points) {
    vd at = all(from[n]);
    memcpy(&at, from + n, 8 * (size_t)(points - n < LANES ? points - n : LANES));
    return at;
}

FN int NAME(all_real)(const Film *film, vd q) {
    vd k0 = 0.5 * vmax(vabs(q), all(SMALLEST_Q));
    return film->transparent && !any(k0 * k0 <= film->largest_contrast);
}

static void NAME(reflectivity)(const Film *film, const double *q, int points, double *out) {
    for (int n = 0; n < points; n += LANES) {
        const int count = points - n < LANES ? points - n : LANES;
        const vd at = NAME(points_at)(q, n, points), k0 = 0.5 * vmax(vabs(at), all(SMALLEST_Q));
        store(out + n, NAME(all_real)(film, at) ? NAME(sharp)(film, k0, 1) : NAME(sharp)(film, k0, 0), count);
    }
}

/* |r|^2 and its derivatives, by one sweep up the stack and one down it. The derivative by each wanted number,
 * times the weight, is added to the sum of its row; behind its media, `scratch` holds these sums.
 *
 * With A = r_below e the amplitude that arrives at an interface from below it, e = exp(2 i k d):
 * dr/dF = (1 - A^2)/(1 + F A)^2 and dr/dA = (1 - F^2)/(1 + F A)^2. */
FN void NAME(slopes)(const Film *film, vd q, double *out, int count, char *scratch, vd weight, int real) {
    vc *const k = (vc *)scratch, *const F = k + film->media, *const E = F + film->media, *const A = E + film->media,
             *const e = A + film->media;
    const int last = film->media - 1;
    vd k0 = 0.5 * vmax(vabs(q), all(SMALLEST_Q)), k0_squared = k0 * k0;
    vc r = {all(0.0), all(0.0)};
    const vc one = {all(1.0), all(0.0)};
    for (int j = last; j >= 0; j--) {
        if (j == 0)
            k[j] = (vc){k0, all(0.0)};
        else if (real)
            k[j] = (vc){VSQRT(k0_squared - film->contrast[j]), all(0.0)};
        else
            k[j] = root(k0_squared - film->contrast[j], film->absorption[j]);
        if (j == last) continue;
        e[j] = one;
        if (j < last - 1) e[j] = NAME(travel)(k[j + 1], film->thickness[j], real);
        A[j] = mul(r, e[j]);
        const double sigma = film->roughness[j];
        E[j] = one;
        if (sigma != 0.0) {
            if (real)
                E[j].re = vexp(k[j].re * k[j + 1].re * (-2.0 * sigma * sigma));
            else
                E[j] = vcexp(times(all(-2.0 * sigma * sigma), mul(k[j], k[j + 1])));
        }
        F[j] = mul(cdiv(minus(k[j], k[j + 1]), plus(k[j], k[j + 1])), E[j]);
        r = cdiv(plus(F[j], A[j]), plus(one, mul(F[j], A[j])));
    }
    store(out, r.re * r.re + r.im * r.im, count);

    /* dR = 2 Re(conj(r) dr) */
    const vc conjugate = {2.0 * r.re, -2.0 * r.im};
    const int M = film->media;
    vd *const sums = (vd *)(e + film->media);
    vc reach = one;                        /* dr_0/dr_j */
    vc by_k = {all(0.0), all(0.0)};        /* dr_0/dk_j, what the interface above k_j gave */
    vd fronting = all(0.0), by_q = all(0.0);
#define PUT(column, value)                                                     \
    do {                                                                       \
        const int row_ = film->rows[column];                                   \
        if (row_ >= 0) sums[row_] += weight * (value);                         \
    } while (0)
    for (int j = 0; j <= last; j++) {
        vc carried = {all(0.0), all(0.0)};
        if (j < last) {
            const double sigma = film->roughness[j];
            const vc a = k[j], b = k[j + 1], sum = plus(a, b), whole = plus(one, mul(F[j], A[j]));
            const vc share = cdiv(reach, mul(whole, whole));
            const vc by_F = mul(share, minus(one, mul(A[j], A[j])));
            const vc by_A = mul(share, minus(one, mul(F[j], F[j])));
            /* dF/da = b (2E/(a+b)^2 - 2 sigma^2 F), dF/db = -a (2E/(a+b)^2 + 2 sigma^2 F) */
            const vc steep = cdiv(times(all(2.0), E[j]), mul(sum, sum));
            const vc damp = times(all(2.0 * sigma * sigma), F[j]);
            by_k = plus(by_k, mul(by_F, mul(b, minus(steep, damp))));
            carried = minus(carried, mul(by_F, mul(a, plus(steep, damp))));
            const vc blurred = mul(by_F, mul(mul(a, b), times(all(-4.0 * sigma), F[j])));
            PUT(3 * M - 2 + j, mul(conjugate, blurred).re);
            if (j < last - 1) {
                const vc turn = mul(by_A, A[j]), turned = {-2.0 * turn.im, 2.0 * turn.re};
                PUT(2 * M + j, mul(conjugate, mul(turned, b)).re);
                carried = plus(carried, times(all(film->thickness[j]), turned));
            }
            reach = mul(by_A, e[j]);
        }
        if (j == 0) {
            by_q += 0.5 * mul(conjugate, by_k).re;
        } else {
            /* k dk = -2 pi 1e-6 (d rho - i d beta) */
            const vc seen = mul(conjugate, cdiv(by_k, k[j]));
            PUT(j, -0.5 * POTENTIAL * seen.re);
            PUT(M + j, -0.5 * POTENTIAL * seen.im);
            fronting += 0.5 * POTENTIAL * seen.re;
            by_q += 0.5 * k0 * seen.re;
        }
        by_k = carried;
    }
    PUT(0, fronting);
    PUT(M, all(0.0));
    PUT(4 * M - 3, by_q);
#undef PUT
}

/* grad[height][points]: the derivatives. */
static void NAME(gradient)(const Film *film, const double *q, int points, int height, double *out, double *grad,
                           char *scratch) {
    vd *const sums = (vd *)(scratch + 5 * sizeof(vc) * film->media);
    for (int n = 0; n < points; n += LANES) {
        const int count = points - n < LANES ? points - n : LANES;
        const vd at = NAME(points_at)(q, n, points), one = all(1.0);
        for (int row = 0; row < height; row++) sums[row] = all(0.0);
        if (NAME(all_real)(film, at))
            NAME(slopes)(film, at, out + n, count, scratch, one, 1);
        else
            NAME(slopes)(film, at, out + n, count, scratch, one, 0);
        for (int row = 0; row < height; row++) store(grad + (size_t)row * points + n, sums[row], count);
    }
}

/* grad[height]: sums over the points of weights[points] times the derivatives. */
static void NAME(pull)(const Film *film, const double *q, int points, const double *weights, int height,
                       double *grad, char *scratch) {
    vd *const sums = (vd *)(scratch + 5 * sizeof(vc) * film->media);
    double unused[LANES];
    for (int row = 0; row < height; row++) sums[row] = all(0.0);
    for (int n = 0; n < points; n += LANES) {
        const int count = points - n < LANES ? points - n : LANES;
        const vd at = NAME(points_at)(q, n, points);
        vd weight = all(0.0);
        memcpy(&weight, weights + n, 8 * (size_t)count);
        if (NAME(all_real)(film, at))
            NAME(slopes)(film, at, unused, count, scratch, weight, 1);
        else
            NAME(slopes)(film, at, unused, count, scratch, weight, 0);
    }
    for (int row = 0; row < height; row++) {
        double sum = 0.0;
        for (int i = 0; i < LANES; i++) sum += sums[row][i];
        grad[row] = sum;
    }
}

/* erf from a table; the caller keeps |x| below ERF_END. */
FN vd NAME(erf)(vd x) {
    vd near = vabs(x) * (double)ERF_PER_UNIT + MAGIC;
    /* Within the table, whatever x is. */
    vi index = (vi)near & (ERF_SIZE - 1);
    vd centre = (near - MAGIC) * (1.0 / ERF_PER_UNIT);
    vd d = vabs(x) - centre, value, slope;
    for (int i = 0; i < LANES; i++) {
        value[i] = erf_table[2 * index[i]];
        slope[i] = erf_table[2 * index[i] + 1];
    }
    /* Taylor: the derivatives of erf are Hermite polynomials times its slope. */
    vd c2 = centre * centre;
    vd third = (2.0 * c2 - 1.0) * (1.0 / 3), fourth = centre * (3.0 - 2.0 * c2) * (1.0 / 6);
    vd fifth = (c2 * (4.0 * c2 - 12.0) + 3.0) * (1.0 / 30);
    vd size = value + slope * d * (1.0 + d * (-centre + d * (third + d * (fourth + d * fifth))));
    return (vd)((vi)size | ((vi)x & INT64_MIN));
}

/* The sampled profile: see engine.c. */
static void NAME(profile)(const Film *film, const double *values, int points, double *z_out, double *out) {
    const double first = film->z_left, width = (film->nodes - 1) * NODE / (points - 1);
    for (int n = 0; n < points; n++) {
        z_out[n] = first + n * width;
        out[n] = values[0];
    }
    double depth = 0.0;
    for (int j = 0; j < film->media - 1; j++) {
        if (j > 0) depth += film->thickness[j - 1];
        const double sigma = film->roughness[j];
        /* Of a film that is not all numbers, nothing is known. */
        const double step = values[j + 1] - values[j] + 0.0 * (depth + sigma);
        if (step == 0.0) continue;
        const double reach = sigma > 0.0 ? ERF_END * sqrt(2.0) * sigma : 0.0;
        const int low = within(floor((depth - reach - first) / width) - 1.0, points);
        const int end = within(ceil((depth + reach - first) / width) + 2.0, points), high = end < low ? low : end;
        const double scale = sigma > 0.0 ? 1.0 / (sqrt(2.0) * sigma) : 0.0;
        for (int n = low; n < high; n += LANES) {
            const int count = high - n < LANES ? high - n : LANES;
            vd at;
            for (int i = 0; i < LANES; i++) at[i] = n + i;
            /* Between the two nodes that a sampled profile would have, as a straight line. */
            vd place = vmin(at * (width / NODE), all(film->nodes - 1));
            vd node = place + MAGIC - MAGIC;
            node = node - pick(node > place, all(1.0), all(0.0));
            vd part = place - node;
            vd x = first + node * NODE - depth, share;
            vd y = x + NODE;
            if (sigma > 0.0) {
                x = vmin(vmax(x * scale, all(-ERF_END)), all(ERF_END));
                y = vmin(vmax(y * scale, all(-ERF_END)), all(ERF_END));
                share = 0.5 + 0.5 * ((1.0 - part) * NAME(erf)(x) + part * NAME(erf)(y));
            } else {
                vd zero = all(0.0), unit = all(1.0);
                share = (1.0 - part) * pick(x >= 0.0, unit, zero) + part * pick(y >= 0.0, unit, zero);
            }
            vd sum = all(0.0);
            memcpy(&sum, out + n, 8 * (size_t)count);
            store(out + n, sum + step * share, count);
        }
        for (int n = high; n < points; n++) out[n] += step;
    }
}

#undef vd
#undef vi
#undef FN
#undef load
#undef store
#undef all
#undef pick
#undef vabs
#undef vmin
#undef vmax
#undef any
#undef MAGIC
#undef vexp
#undef vsincos
#undef vc
#undef mul
#undef cdiv
#undef plus
#undef minus
#undef times
#undef root
#undef vcexp
