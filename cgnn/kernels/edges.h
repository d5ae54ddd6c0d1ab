/* What the loops over edges share: activations with their slopes, sums in short pieces, and the threads' shares. */
#ifndef CGNN_EDGES_H
#define CGNN_EDGES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define LOOP _Pragma("GCC ivdep")

enum { SOFTPLUS, SILU, RELU };
/* Sums in single precision are kept short: over the edges of FLUSH atoms, over BLOCK edges of one atom. */
enum { MAX_WIDTH = 512, FLUSH = 64, BLOCK = 32 };

INLINE float as_float(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE int32_t as_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* exp to 2e-7, for arguments below 88; NaN stays NaN */
INLINE float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* the integer nearest x / ln 2 stands in the last bits */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * as_float((int32_t)((uint32_t)as_bits(shifted) << 23) + 0x3f800000);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }

/* log(1 + t) for 0 <= t <= 1, to 2e-7; coefficients of log(1 + t) / t fitted at Chebyshev points */
INLINE float log1p_(float t) {
    float y = -3.256378462538123e-3f;
    y = y * t + 1.9907161593437195e-2f;
    y = y * t - 5.7064201682806015e-2f;
    y = y * t + 1.0614264756441116e-1f;
    y = y * t - 1.5311862528324127e-1f;
    y = y * t + 1.9678117334842682e-1f;
    y = y * t - 2.4954558908939362e-1f;
    y = y * t + 3.3330005407333374e-1f;
    y = y * t - 4.999990463256836e-1f;
    return (y * t + 1.0f) * t;
}

INLINE float positive(float x) { return x > 0.0f ? x : 0.0f; }

INLINE float act(float x, int64_t kind) {
    if (kind == SOFTPLUS) return positive(x) + log1p_(exp_(x > 0.0f ? -x : x));
    if (kind == SILU) return x * sigmoid(x);
    return x < 0.0f ? 0.0f : x;
}

/* value and slope of an activation */
INLINE void act_slope(float x, int64_t kind, float *value, float *slope) {
    if (kind == SOFTPLUS) {
        float t = exp_(x > 0.0f ? -x : x);
        float s = 1.0f / (1.0f + t);
        *value = positive(x) + log1p_(t);
        *slope = x > 0.0f ? s : t * s;
    } else if (kind == SILU) {
        float s = sigmoid(x);
        *value = x * s;
        *slope = s * (1.0f + x * (1.0f - s));
    } else {
        *value = x < 0.0f ? 0.0f : x;
        *slope = x > 0.0f ? 1.0f : 0.0f;
    }
}

INLINE void flush(double *total, float *part, int64_t channels) {
    for (int64_t c = 0; c < channels; c++) total[c] += part[c];
    memset(part, 0, channels * sizeof *part);
}

/* out += part */
CLONES static void add(float *restrict out, const float *restrict part, int64_t first, int64_t last) {
    for (int64_t k = first; k < last; k++) out[k] += part[k];
}

/* The first atom of a thread's share: shares have about as many edges. */
static int64_t share(const int64_t *ptr, int64_t atoms, int64_t thread, int64_t threads) {
    int64_t wanted = ptr[atoms] / threads * thread, low = 0, high = atoms;
    if (thread == threads) return atoms;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (ptr[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Flush denormals to zero in this thread, for products of small weights would crawl; returns what to restore. */
static unsigned flush_denormals(void) {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}

static void restore_denormals(unsigned before) {
#if defined(__SSE__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

#endif
