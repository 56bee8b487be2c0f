/* Specular reflectivity, its derivatives, resolution and SLD profiles of layered films, in float64.
 *
 * The same equations as kernel.py, where they are explained: Parratt's recursion with Nevot-Croce roughness.
 * A film of M media, fronting first, is given by four arrays: sld[M] and isld[M] in 1e-6/angstrom^2,
 * thickness[M - 2] and roughness[M - 1] in angstrom; films of a batch follow each other.
 *
 * The inner loops are compiled once for each instruction set and chosen when the library is loaded. Functions
 * return 0, or 1 when there is no memory.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* From 1e-6/angstrom^2 to 4 pi rho in 1/angstrom^2. */
#define POTENTIAL (4.0e-6 * 3.14159265358979323846)
/* Keeps wavenumbers off 0, as in kernel.py. */
#define TINY_ABSORPTION 1e-30
#define SMALLEST_Q 1e-10
/* Spacing in angstrom of the nodes between which a profile is drawn as straight lines. */
#define NODE 0.1
#define ERF_PER_UNIT 128
#define ERF_END 5.9
/* A power of two above 6 ERF_PER_UNIT. */
#define ERF_SIZE 1024

/* Changes with the arguments of any function: engine.py calls no library of another number. */
#define ABI 1

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    int media;
    const double *contrast, *absorption, *thickness, *roughness;
    double largest_contrast;
    int transparent;
    /* Where the derivative by each number goes, -1 for nowhere; only `gradient` and `pull` need it. */
    const int32_t *rows;
    /* Only `profile` needs these. */
    double z_left;
    double nodes;
} Film;

/* erf and its derivative at multiples of 1/ERF_PER_UNIT. (expl: exp itself would need a newer glibc than the
 * library is built for.) */
static double erf_table[2 * ERF_SIZE];

/* x brought between 0 and `most`; 0 for what is no number. */
static inline int within(double x, int most) { return x > 0.0 ? (x < most ? (int)x : most) : 0; }

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CHOOSES 1
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,fma")
#define LANES 8
#define NAME(x) JOIN(x, _avx512)
#define VSQRT(x) ((vd)_mm512_sqrt_pd((__m512d)(x)))
#include "lanes.h"
#undef LANES
#undef NAME
#undef VSQRT
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 4
#define NAME(x) JOIN(x, _avx2)
#define VSQRT(x) ((vd)_mm256_sqrt_pd((__m256d)(x)))
#include "lanes.h"
#undef LANES
#undef NAME
#undef VSQRT
#pragma GCC pop_options
#endif

#define LANES 2
#define NAME(x) JOIN(x, _any)
static inline __attribute__((always_inline)) double __attribute__((vector_size(16)))
root_any_(double __attribute__((vector_size(16))) x) {
    x[0] = sqrt(x[0]);
    x[1] = sqrt(x[1]);
    return x;
}
#define VSQRT(x) root_any_(x)
#include "lanes.h"

typedef struct {
    const char *name;
    int lanes;
    void (*reflectivity)(const Film *, const double *, int, double *);
    void (*gradient)(const Film *, const double *, int, int, double *, double *, char *);
    void (*pull)(const Film *, const double *, int, const double *, int, double *, char *);
    void (*profile)(const Film *, const double *, int, double *, double *);
} Set;

#define SET(suffix, lanes) \
    { #suffix, lanes, reflectivity_##suffix, gradient_##suffix, pull_##suffix, profile_##suffix }
static const Set sets[] = {
    SET(any, 2),
#ifdef CHOOSES
    SET(avx2, 4),
    SET(avx512, 8),
#endif
};
static const Set *chosen = sets;

static int supported(const char *name) {
#ifdef CHOOSES
    __builtin_cpu_init();
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return !strcmp(name, "any");
}

__attribute__((constructor)) static void prepare(void) {
    for (int i = 0; i <= 6 * ERF_PER_UNIT; i++) {
        const double x = (double)i / ERF_PER_UNIT;
        erf_table[2 * i] = erf(x);
        erf_table[2 * i + 1] = 1.12837916709551257390 * (double)expl(-(long double)(x * x));
    }
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (supported(sets[i].name)) chosen = sets + i;
}

EXPORT int guidehall_abi(void) { return ABI; }

/* The instruction set in use. */
EXPORT const char *guidehall_instructions(void) { return chosen->name; }

/* Takes another instruction set; 1 if this machine or this build has none of that name. */
EXPORT int guidehall_choose(const char *name) {
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!strcmp(sets[i].name, name) && supported(name)) {
            chosen = sets + i;
            return 0;
        }
    return 1;
}

/* Fills in what depends on the media; `room` holds 2 M numbers. */
static Film film_of(int media, const double *sld, const double *isld, const double *thickness,
                    const double *roughness, double *room) {
    Film film = {.media = media,
                 .contrast = room,
                 .absorption = room + media,
                 .thickness = thickness,
                 .roughness = roughness,
                 .transparent = 1};
    for (int j = 0; j < media; j++) {
        room[j] = POTENTIAL * (sld[j] - sld[0]);
        room[media + j] = POTENTIAL * (fabs(isld[j]) + TINY_ABSORPTION);
        if (j > 0 && isld[j] != 0.0) film.transparent = 0;
        if (j == 1 || room[j] > film.largest_contrast) film.largest_contrast = room[j];
    }
    return film;
}

/* Room for five complex vectors for each medium, and `more` real ones. */
static char *scratch_of(int media, int more) {
    const size_t vectors = 10 * (size_t)media + (size_t)more;
    return aligned_alloc(64, (vectors * 8 * (size_t)chosen->lanes + 63) / 64 * 64);
}

/* out[films][points]: reflectivity at q[points], or at q[films][points] when `own_q`. */
EXPORT int guidehall_reflectivity(int films, int media, const double *sld, const double *isld,
                                  const double *thickness, const double *roughness, int points,
                                  const double *q, int own_q, double *out) {
    double *room = malloc(2 * (size_t)media * sizeof *room);
    if (!room) return 1;
    for (size_t b = 0; b < (size_t)films; b++) {
        const Film film = film_of(media, sld + b * media, isld + b * media, thickness + b * (media - 2),
                                  roughness + b * (media - 1), room);
        chosen->reflectivity(&film, q + (own_q ? b * points : 0), points, out + b * points);
    }
    free(room);
    return 0;
}

/* The same, and grad[films][height][points]: derivatives by sld[M], isld[M], thickness[M - 2],
 * roughness[M - 1] and q, 4 M - 2 in all, of which number i goes to row rows[i] (nowhere when negative). Those of
 * one row are added up: they are by one number that a film has in several places. */
EXPORT int guidehall_gradient(int films, int media, const double *sld, const double *isld,
                              const double *thickness, const double *roughness, int points, const double *q,
                              int own_q, const int32_t *rows, int height, double *out, double *grad) {
    double *room = malloc(2 * (size_t)media * sizeof *room);
    char *scratch = scratch_of(media, height);
    const int lost = !room || !scratch;
    for (size_t b = 0; !lost && b < (size_t)films; b++) {
        Film film = film_of(media, sld + b * media, isld + b * media, thickness + b * (media - 2),
                            roughness + b * (media - 1), room);
        film.rows = rows;
        chosen->gradient(&film, q + (own_q ? b * points : 0), points, height, out + b * points,
                         grad + b * height * points, scratch);
    }
    free(scratch);
    free(room);
    return lost;
}

/* grad[films][height]: sums over the points of weights[films][points] times the derivatives, as
 * guidehall_gradient numbers them. */
EXPORT int guidehall_pull(int films, int media, const double *sld, const double *isld, const double *thickness,
                          const double *roughness, int points, const double *q, int own_q, const int32_t *rows,
                          int height, const double *weights, double *grad) {
    double *room = malloc(2 * (size_t)media * sizeof *room);
    char *scratch = scratch_of(media, height);
    const int lost = !room || !scratch;
    for (size_t b = 0; !lost && b < (size_t)films; b++) {
        Film film = film_of(media, sld + b * media, isld + b * media, thickness + b * (media - 2),
                            roughness + b * (media - 1), room);
        film.rows = rows;
        chosen->pull(&film, q + (own_q ? b * points : 0), points, weights + b * points, height,
                     grad + b * height, scratch);
    }
    free(scratch);
    free(room);
    return lost;
}

/* out[rows][points] = sum over k of weights[n][k] in[rows][first[n] + k], k < width: a banded matrix applied to
 * curves of `wide` points. */
EXPORT int guidehall_blur(int rows, int wide, const double *in, int points, int width, const int32_t *first,
                          const double *weights, double *out) {
    for (size_t row = 0; row < (size_t)rows; row++) {
        const double *from = in + row * wide;
        for (int n = 0; n < points; n++) {
            const double *w = weights + (size_t)n * width, *x = from + first[n];
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (int k = 0; k < width; k++) sum += w[k] * x[k];
            out[row * points + n] = sum;
        }
    }
    return 0;
}

/* z[films][points] and out[films][points]: the smooth profile of `values` (sld or isld) on an even grid from 10
 * angstrom, or three times the roughness, before the first interface to as much behind the last; the first
 * interface is at 0. As in packages that draw a profile at nodes 0.1 angstrom apart, it is a straight line between
 * nodes. */
EXPORT int guidehall_profile(int films, int media, const double *values, const double *thickness,
                             const double *roughness, int points, double *z, double *out) {
    for (size_t b = 0; b < (size_t)films; b++) {
        Film film = {.media = media, .thickness = thickness + b * (media - 2), .roughness = roughness + b * (media - 1)};
        double depth = 0.0, left = -10.0, right = -1e300;
        for (int j = 0; j < media - 1; j++) {
            if (j > 0) depth += film.thickness[j - 1];
            left = fmin(left, depth - 3.0 * film.roughness[j]);
            right = fmax(right, depth + 3.0 * film.roughness[j]);
        }
        right = fmax(right, depth + 10.0);
        film.z_left = left;
        film.nodes = ceil((right + 0.05 - left) / NODE);
        chosen->profile(&film, values + b * media, points, z + b * points, out + b * points);
    }
    return 0;
}
