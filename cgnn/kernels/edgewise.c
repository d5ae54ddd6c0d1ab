/* Hidden layers and gated messages where each edge brings a term of its own, forward and backward.
 *
 * For an edge e from source j to target i, with rows of C channels:
 *
 *     p_e = T_i + S_j + R_e
 *     hidden:  x_e = act(p_e)
 *     gate:    M_i = sum_e w_e sigmoid(a p_e + b)_gate act(a p_e + b)_core,   p = [gate, core], C = 2F
 *
 * R and its gradient have the size of edges times channels and come from, and go to, a product of matrices; besides
 * them and x nothing of that size is written. Edges are sorted by target: those of atom i are ptr[i] .. ptr[i+1]. Sums
 * over edges go to buffers of one thread each, added in the order of the threads, so the same number of threads gives
 * the same bits.
 */
#include "edges.h"

typedef struct {
    int64_t atoms, channels; /* N, C */
    int64_t activation;
    const float *target, *source, *edge; /* T, S (N, C), R (E, C) */
    const int64_t *ptr;                  /* (N+1) */
    const int32_t *from;                 /* (E) source atom */
    const float *weight;                 /* (E) envelope */
} Edges;

/* What an edge's row is made of. */
typedef struct {
    const float *t, *s, *r;
} Row;

INLINE Row row_of(const Edges *in, int64_t atom, int64_t e, int64_t channels) {
    Row row = {in->target + atom * channels, in->source + (int64_t)in->from[e] * channels, in->edge + e * channels};
    return row;
}

INLINE float value_of(const Row *p, int64_t c) { return (p->t[c] + p->s[c]) + p->r[c]; }

/* ---- hidden layer ------------------------------------------------------------------------------------------- */

INLINE void hidden_of(const Edges *in, float *out, int64_t first, int64_t last, const int64_t kind) {
    const int64_t channels = in->channels;
    for (int64_t i = first; i < last; i++)
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Row p = row_of(in, i, e, channels);
            float *x = out + e * channels;
            LOOP
            for (int64_t c = 0; c < channels; c++) x[c] = act(value_of(&p, c), kind);
        }
}

/* `slope` (E, C) is the gradient with respect to x; sums of that with respect to p by edge, target and source. */
INLINE void hidden_back_of(const Edges *in, const float *slope, float *by_edge, float *by_target, float *by_source,
                           int64_t first, int64_t last, const int64_t kind) {
    const int64_t channels = in->channels;
    for (int64_t i = first; i < last; i++) {
        float *here = by_target + i * channels;
        memset(here, 0, channels * sizeof *here);
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Row p = row_of(in, i, e, channels);
            const float *d = slope + e * channels;
            float *there = by_source + (int64_t)in->from[e] * channels, *own = by_edge + e * channels;
            LOOP
            for (int64_t c = 0; c < channels; c++) {
                float value, gradient;
                act_slope(value_of(&p, c), kind, &value, &gradient);
                gradient *= d[c];
                own[c] = gradient;
                here[c] += gradient;
                there[c] += gradient;
            }
        }
    }
}

/* ---- gated messages ----------------------------------------------------------------------------------------- */

INLINE void forward_of(const Edges *in, const float *a, const float *b, float *out, int64_t first, int64_t last,
                       const int64_t kind) {
    const int64_t channels = in->channels, width = channels / 2;
    float part[MAX_WIDTH];
    for (int64_t i = first; i < last; i++) {
        float *message = out + i * width;
        memset(message, 0, width * sizeof *message);
        for (int64_t block = in->ptr[i]; block < in->ptr[i + 1]; block += BLOCK) {
            int64_t end = block + BLOCK < in->ptr[i + 1] ? block + BLOCK : in->ptr[i + 1];
            memset(part, 0, width * sizeof *part);
            for (int64_t e = block; e < end; e++) {
                const Row p = row_of(in, i, e, channels);
                const float w = in->weight[e];
                LOOP
                for (int64_t c = 0; c < width; c++) {
                    float gate = a[c] * value_of(&p, c) + b[c];
                    float core = a[width + c] * value_of(&p, width + c) + b[width + c];
                    part[c] += w * sigmoid(gate) * act(core, kind);
                }
            }
            for (int64_t c = 0; c < width; c++) message[c] += part[c];
        }
    }
}

/* Sums over edges of p - shift and its square per channel. */
CLONES static void moments_range(const Edges *in, const float *shift, double *sum, double *square, int64_t first,
                                 int64_t last) {
    const int64_t channels = in->channels;
    float part[2 * MAX_WIDTH] = {0}, squares[2 * MAX_WIDTH] = {0};
    for (int64_t i = first; i < last; i++) {
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Row p = row_of(in, i, e, channels);
            LOOP
            for (int64_t c = 0; c < channels; c++) {
                float v = value_of(&p, c) - shift[c];
                part[c] += v;
                squares[c] += v * v;
            }
        }
        if ((i - first) % FLUSH == FLUSH - 1 || i + 1 == last) {
            flush(sum, part, channels);
            flush(square, squares, channels);
        }
    }
}

/* The gradient with respect to a p + b by edge, its sum per channel, and that of its product with p - shift; `slope`
 * (N, F) is the gradient with respect to the messages. */
INLINE void backward_of(const Edges *in, const float *a, const float *b, const float *shift, const float *slope,
                        double *sum, double *product, float *by_edge, int64_t first, int64_t last,
                        const int64_t kind) {
    const int64_t channels = in->channels, width = channels / 2;
    float part[2 * MAX_WIDTH] = {0}, products[2 * MAX_WIDTH] = {0};
    for (int64_t i = first; i < last; i++) {
        const float *d = slope + i * width;
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Row p = row_of(in, i, e, channels);
            const float w = in->weight[e];
            float *own = by_edge + e * channels;
            LOOP
            for (int64_t c = 0; c < width; c++) {
                float raw_gate = value_of(&p, c), raw_core = value_of(&p, width + c);
                float s = sigmoid(a[c] * raw_gate + b[c]);
                float core, core_slope;
                act_slope(a[width + c] * raw_core + b[width + c], kind, &core, &core_slope);
                float weighted = d[c] * w * s;
                float to_gate = weighted * core * (1.0f - s), to_core = weighted * core_slope;
                own[c] = to_gate;
                own[width + c] = to_core;
                part[c] += to_gate;
                part[width + c] += to_core;
                products[c] += to_gate * (raw_gate - shift[c]);
                products[width + c] += to_core * (raw_core - shift[width + c]);
            }
        }
        if ((i - first) % FLUSH == FLUSH - 1 || i + 1 == last) {
            flush(sum, part, channels);
            flush(product, products, channels);
        }
    }
}

/* Turn the gradient with respect to a p + b into that with respect to p, a g + constant + factor (p - shift), where
 * the last two come from the batch's mean and variance; and sum it by target and source. */
CLONES static void through_norm_range(const Edges *in, const float *a, const float *constant, const float *factor,
                                      const float *shift, float *by_edge, float *by_target, float *by_source,
                                      int64_t first, int64_t last) {
    const int64_t channels = in->channels;
    for (int64_t i = first; i < last; i++) {
        float *here = by_target + i * channels;
        memset(here, 0, channels * sizeof *here);
        for (int64_t e = in->ptr[i]; e < in->ptr[i + 1]; e++) {
            const Row p = row_of(in, i, e, channels);
            float *there = by_source + (int64_t)in->from[e] * channels, *own = by_edge + e * channels;
            LOOP
            for (int64_t c = 0; c < channels; c++) {
                float v = a[c] * own[c] + constant[c] + factor[c] * (value_of(&p, c) - shift[c]);
                own[c] = v;
                here[c] += v;
                there[c] += v;
            }
        }
    }
}

/* ---- one range of targets, by activation --------------------------------------------------------------------- */

#define BY_ACTIVATION(call)                    \
    switch (in->activation) {                  \
        case SOFTPLUS: call(SOFTPLUS); break;  \
        case SILU: call(SILU); break;          \
        default: call(RELU); break;            \
    }

CLONES static void hidden_range(const Edges *in, float *out, int64_t first, int64_t last) {
#define HIDDEN(kind) hidden_of(in, out, first, last, kind)
    BY_ACTIVATION(HIDDEN)
#undef HIDDEN
}

CLONES static void hidden_back_range(const Edges *in, const float *slope, float *by_edge, float *by_target,
                                     float *by_source, int64_t first, int64_t last) {
#define HIDDEN(kind) hidden_back_of(in, slope, by_edge, by_target, by_source, first, last, kind)
    BY_ACTIVATION(HIDDEN)
#undef HIDDEN
}

CLONES static void forward_range(const Edges *in, const float *a, const float *b, float *out, int64_t first,
                                 int64_t last) {
#define FORWARD(kind) forward_of(in, a, b, out, first, last, kind)
    BY_ACTIVATION(FORWARD)
#undef FORWARD
}

CLONES static void backward_range(const Edges *in, const float *a, const float *b, const float *shift,
                                  const float *slope, double *sum, double *product, float *by_edge, int64_t first,
                                  int64_t last) {
#define BACKWARD(kind) backward_of(in, a, b, shift, slope, sum, product, by_edge, first, last, kind)
    BY_ACTIVATION(BACKWARD)
#undef BACKWARD
}

/* ---- threads ------------------------------------------------------------------------------------------------ */

/* Run a body with `first` and `last` for each thread's share of the atoms. */
#define SHARES(body)                                                                                             \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")                        \
    for (int64_t k = 0; k < threads; k++) {                                                                      \
        unsigned before = flush_denormals();                                                                     \
        int64_t first = share(in->ptr, in->atoms, k, threads), last = share(in->ptr, in->atoms, k + 1, threads); \
        body;                                                                                                    \
        restore_denormals(before);                                                                               \
    }

void hidden_forward(const Edges *in, float *out, int64_t threads) {
    SHARES(hidden_range(in, out, first, last))
}

void edge_gate_forward(const Edges *in, const float *a, const float *b, float *out, int64_t threads) {
    SHARES(forward_range(in, a, b, out, first, last))
}

/* The buffers by source of the threads after the first; threads write into theirs, `gathered` adds them up. */
static float *source_parts(const Edges *in, float *by_source, int64_t threads) {
    const size_t size = (size_t)(in->atoms * in->channels);
    memset(by_source, 0, size * sizeof *by_source);
    return calloc(threads > 1 ? (size_t)(threads - 1) * size : 1, sizeof *by_source);
}

static void gathered(const Edges *in, float *by_source, float *parts, int64_t threads) {
    const int64_t size = in->atoms * in->channels;
    for (int64_t k = 1; k < threads; k++) add(by_source, parts + (k - 1) * size, 0, size);
    free(parts);
}

#define SOURCE_PART (k ? parts + (k - 1) * in->atoms * in->channels : by_source)

/* Returns 0, or 1 where memory ran out; so do the following. */
int hidden_backward(const Edges *in, const float *slope, float *by_edge, float *by_target, float *by_source,
                    int64_t threads) {
    float *parts = source_parts(in, by_source, threads);
    if (!parts) return 1;
    SHARES(hidden_back_range(in, slope, by_edge, by_target, SOURCE_PART, first, last))
    gathered(in, by_source, parts, threads);
    return 0;
}

int edge_gate_through_norm(const Edges *in, const float *a, const float *constant, const float *factor,
                           const float *shift, float *by_edge, float *by_target, float *by_source, int64_t threads) {
    float *parts = source_parts(in, by_source, threads);
    if (!parts) return 1;
    SHARES(through_norm_range(in, a, constant, factor, shift, by_edge, by_target, SOURCE_PART, first, last))
    gathered(in, by_source, parts, threads);
    return 0;
}

/* Two sums per channel over all edges: of the moments where `slope` is NULL, of the backward pass otherwise. */
int edge_gate_sums(const Edges *in, const float *a, const float *b, const float *shift, const float *slope,
                   double *first_sum, double *second_sum, float *by_edge, int64_t threads) {
    const int64_t channels = in->channels;
    double *sums = calloc((size_t)(threads * 2 * channels), sizeof *sums);
    if (!sums) return 1;
#define SUM (sums + 2 * k * channels)
    if (slope)
        SHARES(backward_range(in, a, b, shift, slope, SUM, SUM + channels, by_edge, first, last))
    else
        SHARES(moments_range(in, shift, SUM, SUM + channels, first, last))
#undef SUM
    for (int64_t c = 0; c < channels; c++) {
        first_sum[c] = second_sum[c] = 0;
        for (int64_t k = 0; k < threads; k++) {
            first_sum[c] += sums[2 * k * channels + c];
            second_sum[c] += sums[(2 * k + 1) * channels + c];
        }
    }
    free(sums);
    return 0;
}
