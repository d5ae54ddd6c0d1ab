/* The gated messages of a convolution, forward and backward, without an array of edges times features.
 *
 * For an edge e from source j to target i, with the pair vector p (2F) = [gate, core]:
 *
 *     p_e = T_i + S_j + sum_q c_q(e) G_{k(e)+q}          q = 0..3
 *     M_i = sum_e w_e sigmoid(a p_e + b)_gate act(a p_e + b)_core
 *
 * G is the edge filter on a grid of distances; c are the cubic Lagrange coefficients of the edge's place between
 * grid points. p is computed again wherever it is needed: that is cheaper than writing it to memory and reading it.
 *
 * Rows of T, S, G and of what belongs to them have 2F floats. Edges are sorted by target: those of atom i are
 * ptr[i] .. ptr[i+1]. Sums over edges go to buffers of one thread each, added in the order of the threads, so the
 * same number of threads gives the same bits.
 */
#include "edges.h"

typedef struct {
    int64_t atoms, rows; /* N, rows of G */
    int64_t width;       /* F */
    int64_t activation;
    const float *target, *source, *grid; /* T, S (N, 2F), G (rows, 2F) */
    const int64_t *ptr;                  /* (N+1) */
    const int32_t *from, *cell;          /* (E) source atom, first grid row */
    const float *place, *weight;         /* (E) in 0..1 within the cell, envelope */
} Edges;

/* What an edge's pair vector is made of. */
typedef struct {
    const float *t, *s, *g0, *g1, *g2, *g3;
    float c0, c1, c2, c3;
} Pair;

INLINE Pair pair_of(const Edges *in, int64_t atom, int64_t e, int64_t width) {
    float u = in->place[e];
    const float *grid = in->grid + (int64_t)in->cell[e] * 2 * width;
    Pair pair = {
        in->target + atom * 2 * width,
        in->source + (int64_t)in->from[e] * 2 * width,
        grid,
        grid + 2 * width,
        grid + 4 * width,
        grid + 6 * width,
        -u * (u - 1.0f) * (u - 2.0f) * (1.0f / 6.0f),
        (u + 1.0f) * (u - 1.0f) * (u - 2.0f) * 0.5f,
        -(u + 1.0f) * u * (u - 2.0f) * 0.5f,
        (u + 1.0f) * u * (u - 1.0f) * (1.0f / 6.0f),
    };
    return pair;
}

INLINE float pair_value(const Pair *p, int64_t c) {
    return (p->t[c] + p->s[c]) + (p->c0 * p->g0[c] + p->c1 * p->g1[c]) + (p->c2 * p->g2[c] + p->c3 * p->g3[c]);
}

INLINE void spread(float *grid, const float *value, const Pair *p, int64_t channels) {
    float *g1 = grid + channels, *g2 = grid + 2 * channels, *g3 = grid + 3 * channels;
    LOOP
    for (int64_t c = 0; c < channels; c++) {
        float v = value[c];
        grid[c] += p->c0 * v;
        g1[c] += p->c1 * v;
        g2[c] += p->c2 * v;
        g3[c] += p->c3 * v;
    }
}

/* ---- forward ---------------------------------------------------------------------------------------------- */

INLINE void forward_of(const Edges *in, const float *a, const float *b, float *out, int64_t first, int64_t last,
                       const int64_t width, const int64_t kind) {
    float part[MAX_WIDTH];
    for (int64_t i = first; i < last; i++) {
        float *message = out + i * width;
        memset(message, 0, width * sizeof *message);
        for (int64_t block = in->ptr[i]; block < in->ptr[i + 1]; block += BLOCK) {
            int64_t end = block + BLOCK < in->ptr[i + 1] ? block + BLOCK : in->ptr[i + 1];
            memset(part, 0, width * sizeof *part);
            for (int64_t e = block; e < end; e++) {
                const Pair p = pair_of(in, i, e, width);
                const float w = in->weight[e];
                LOOP
                for (int64_t c = 0; c < width; c++) {
                    float gate = a[c] * pair_value(&p, c) + b[c];
                    float core = a[width + c] * pair_value(&p, width + c) + b[width + c];
                    part[c] += w * sigmoid(gate) * act(core, kind);
                }
            }
            for (int64_t c = 0; c < width; c++) message[c] += part[c];
        }
    }
}

/* Sums over edges of p - shift and its square per channel, and of p - shift per target, source and grid row. */
INLINE void moments_of(const Edges *in, const float *shift, double *sum, double *square, float *by_target,
                       float *by_source, float *by_grid, int64_t first, int64_t last, const int64_t width) {
    const int64_t channels = 2 * width;
    float value[2 * MAX_WIDTH], part[2 * MAX_WIDTH] = {0}, squares[2 * MAX_WIDTH] = {0};
    for (int64_t i = first; i < last; i++) {
        float *here = by_target + i * channels;
        memset(here, 0, channels * sizeof *here);
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Pair p = pair_of(in, i, e, width);
            float *there = by_source + (int64_t)in->from[e] * channels;
            LOOP
            for (int64_t c = 0; c < channels; c++) {
                float v = pair_value(&p, c) - shift[c];
                value[c] = v;
                here[c] += v;
                there[c] += v;
                squares[c] += v * v;
            }
            spread(by_grid + (int64_t)in->cell[e] * channels, value, &p, channels);
        }
        for (int64_t c = 0; c < channels; c++) part[c] += here[c];
        if ((i - first) % FLUSH == FLUSH - 1 || i + 1 == last) {
            flush(sum, part, channels);
            flush(square, squares, channels);
        }
    }
}

/* ---- backward --------------------------------------------------------------------------------------------- */

/* The same sums, of the gradient with respect to a p + b in the place of p - shift; `product` gets its sum with
 * p - shift. `slope` (N, F) is the gradient with respect to the messages. */
INLINE void backward_of(const Edges *in, const float *a, const float *b, const float *shift, const float *slope,
                        double *sum, double *product, float *by_target, float *by_source, float *by_grid,
                        int64_t first, int64_t last, const int64_t width, const int64_t kind) {
    const int64_t channels = 2 * width;
    float value[2 * MAX_WIDTH], part[2 * MAX_WIDTH] = {0}, products[2 * MAX_WIDTH] = {0};
    for (int64_t i = first; i < last; i++) {
        float *here = by_target + i * channels;
        const float *d = slope + i * width;
        memset(here, 0, channels * sizeof *here);
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Pair p = pair_of(in, i, e, width);
            const float w = in->weight[e];
            float *there = by_source + (int64_t)in->from[e] * channels;
            LOOP
            for (int64_t c = 0; c < width; c++) {
                float raw_gate = pair_value(&p, c), raw_core = pair_value(&p, width + c);
                float s = sigmoid(a[c] * raw_gate + b[c]);
                float core, core_slope;
                act_slope(a[width + c] * raw_core + b[width + c], kind, &core, &core_slope);
                float weighted = d[c] * w * s;
                float to_gate = weighted * core * (1.0f - s), to_core = weighted * core_slope;
                value[c] = to_gate;
                value[width + c] = to_core;
                products[c] += to_gate * (raw_gate - shift[c]);
                products[width + c] += to_core * (raw_core - shift[width + c]);
            }
            LOOP
            for (int64_t c = 0; c < channels; c++) {
                here[c] += value[c];
                there[c] += value[c];
            }
            spread(by_grid + (int64_t)in->cell[e] * channels, value, &p, channels);
        }
        for (int64_t c = 0; c < channels; c++) part[c] += here[c];
        if ((i - first) % FLUSH == FLUSH - 1 || i + 1 == last) {
            flush(sum, part, channels);
            flush(product, products, channels);
        }
    }
}

/* ---- one range of targets, for common widths compiled with the width known ----------------------------------- */

#define BY_WIDTH(call)                   \
    switch (in->width) {                 \
        case 32: call(32); break;        \
        case 64: call(64); break;        \
        case 96: call(96); break;        \
        case 128: call(128); break;      \
        default: call(in->width); break; \
    }

CLONES static void forward_range(const Edges *in, const float *a, const float *b, float *out, int64_t first,
                                 int64_t last) {
#define SOFTPLUS_OF(width) forward_of(in, a, b, out, first, last, width, SOFTPLUS)
#define SILU_OF(width) forward_of(in, a, b, out, first, last, width, SILU)
    if (in->activation == SOFTPLUS) BY_WIDTH(SOFTPLUS_OF)
    else if (in->activation == SILU) BY_WIDTH(SILU_OF)
    else forward_of(in, a, b, out, first, last, in->width, RELU);
#undef SOFTPLUS_OF
#undef SILU_OF
}

CLONES static void moments_range(const Edges *in, const float *shift, double *sum, double *square, float *by_target,
                                 float *by_source, float *by_grid, int64_t first, int64_t last) {
#define MOMENTS(width) moments_of(in, shift, sum, square, by_target, by_source, by_grid, first, last, width)
    BY_WIDTH(MOMENTS)
#undef MOMENTS
}

CLONES static void backward_range(const Edges *in, const float *a, const float *b, const float *shift,
                                  const float *slope, double *sum, double *product, float *by_target,
                                  float *by_source, float *by_grid, int64_t first, int64_t last) {
#define BACKWARD(width, kind) \
    backward_of(in, a, b, shift, slope, sum, product, by_target, by_source, by_grid, first, last, width, kind)
#define SOFTPLUS_OF(width) BACKWARD(width, SOFTPLUS)
#define SILU_OF(width) BACKWARD(width, SILU)
    if (in->activation == SOFTPLUS) BY_WIDTH(SOFTPLUS_OF)
    else if (in->activation == SILU) BY_WIDTH(SILU_OF)
    else BACKWARD(in->width, RELU);
#undef SOFTPLUS_OF
#undef SILU_OF
#undef BACKWARD
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

void gate_forward(const Edges *in, const float *a, const float *b, float *out, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t k = 0; k < threads; k++) {
        unsigned before = flush_denormals();
        int64_t first = share(in->ptr, in->atoms, k, threads), last = share(in->ptr, in->atoms, k + 1, threads);
        forward_range(in, a, b, out, first, last);
        restore_denormals(before);
    }
}

/* Sums of one pass over the edges: per channel (two kinds), by target, by source and by grid row. A pass for the
 * moments where `slope` is NULL, the backward pass otherwise. Returns 0, or 1 where memory ran out. */
int gate_sums(const Edges *in, const float *a, const float *b, const float *shift, const float *slope,
              double *first_sum, double *second_sum, float *by_target, float *by_source, float *by_grid,
              int64_t threads) {
    const int64_t channels = 2 * in->width, sources = in->atoms * channels, grids = in->rows * channels;
    float *parts = threads > 1 ? malloc((size_t)((threads - 1) * (sources + grids)) * sizeof *parts) : NULL;
    double *sums = calloc((size_t)(threads * 2 * channels), sizeof *sums);
    if (!sums || (threads > 1 && !parts)) {
        free(parts);
        free(sums);
        return 1;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t k = 0; k < threads; k++) {
        unsigned before = flush_denormals();
        float *source = k ? parts + (k - 1) * (sources + grids) : by_source;
        float *grid = k ? source + sources : by_grid;
        double *sum = sums + 2 * k * channels;
        int64_t first = share(in->ptr, in->atoms, k, threads), last = share(in->ptr, in->atoms, k + 1, threads);
        memset(source, 0, sources * sizeof *source);
        memset(grid, 0, grids * sizeof *grid);
        if (slope)
            backward_range(in, a, b, shift, slope, sum, sum + channels, by_target, source, grid, first, last);
        else
            moments_range(in, shift, sum, sum + channels, by_target, source, grid, first, last);
        restore_denormals(before);
    }
    for (int64_t k = 1; k < threads; k++) {
        add(by_source, parts + (k - 1) * (sources + grids), 0, sources);
        add(by_grid, parts + (k - 1) * (sources + grids) + sources, 0, grids);
    }
    for (int64_t c = 0; c < channels; c++) {
        first_sum[c] = second_sum[c] = 0;
        for (int64_t k = 0; k < threads; k++) {
            first_sum[c] += sums[2 * k * channels + c];
            second_sum[c] += sums[(2 * k + 1) * channels + c];
        }
    }
    free(parts);
    free(sums);
    return 0;
}

/* out = a out + count (x) constant + slope other, row by row: what normalisation adds to a gradient. */
CLONES void gate_combine(float *restrict out, const float *restrict other, const float *restrict count,
                         const float *restrict a, const float *restrict constant, const float *restrict slope,
                         int64_t rows, int64_t channels) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t k = r * channels + c;
            out[k] = a[c] * out[k] + count[r] * constant[c] + slope[c] * other[k];
        }
}
