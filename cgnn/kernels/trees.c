/* Sums of boosted trees: from the root of each tree a crystal goes left where its feature is not above the threshold,
 * until it stands on a leaf, which leads to itself.
 *
 * A block of crystals walks a tree together, as many steps as its deepest leaf is down: then no step asks whether it was
 * the last, and the walks of a block do not wait for each other. A crystal's sum is taken in the order of the trees,
 * whatever the number of threads.
 */
#include <stdint.h>
#include <stdlib.h>

enum { BLOCK = 16 };

/* Steps from the root to the deepest leaf; where numbers make no tree, so many that none is deeper. */
static int64_t depth_of(const int32_t *left, const int32_t *right, int64_t nodes, int32_t *level) {
    int64_t deepest = 0;
    for (int64_t node = 0; node < nodes; ++node)
        level[node] = 0;
    for (int64_t node = 0; node < nodes; ++node) {
        const int32_t sides[2] = {left[node], right[node]};
        for (int side = 0; side < 2; ++side) {
            if (sides[side] == node)
                continue;
            if (sides[side] < node)
                return nodes / 2;
            if (level[node] + 1 > level[sides[side]])
                level[sides[side]] = level[node] + 1;
            if (level[sides[side]] > deepest)
                deepest = level[sides[side]];
        }
    }
    return deepest < nodes / 2 ? deepest : nodes / 2;
}

/* Add the trees to sums (rows); x (rows, features), tables (trees, nodes) with numbers that lead nowhere outside.
 * Returns 0, or 1 for want of memory. */
int trees_add(const float *x, int64_t rows, int64_t features, const int32_t *feature, const float *threshold,
              const int32_t *left, const int32_t *right, const float *value, int64_t trees, int64_t nodes, double *sums,
              int64_t threads) {
    int32_t *level = malloc((size_t)nodes * sizeof *level);
    int64_t *steps = malloc((size_t)(trees + 1) * sizeof *steps);
    if (!level || !steps) {
        free(level);
        free(steps);
        return 1;
    }
    for (int64_t tree = 0; tree < trees; ++tree)
        steps[tree] = depth_of(left + tree * nodes, right + tree * nodes, nodes, level);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t first = 0; first < rows; first += BLOCK) {
        const float *block[BLOCK];
        double sum[BLOCK];
        for (int i = 0; i < BLOCK; ++i) { /* a last block that is not full walks its first crystal again */
            block[i] = x + (first + i < rows ? first + i : first) * features;
            sum[i] = 0.0;
        }
        for (int64_t tree = 0; tree < trees; ++tree) {
            const int64_t at = tree * nodes;
            int32_t place[BLOCK] = {0};
            for (int64_t step = 0; step < steps[tree]; ++step)
                for (int i = 0; i < BLOCK; ++i) {
                    const int64_t node = at + place[i];
                    place[i] = block[i][feature[node]] <= threshold[node] ? left[node] : right[node];
                }
            for (int i = 0; i < BLOCK; ++i)
                sum[i] += value[at + place[i]];
        }
        for (int i = 0; i < BLOCK && first + i < rows; ++i)
            sums[first + i] += sum[i];
    }
    free(level);
    free(steps);
    return 0;
}
