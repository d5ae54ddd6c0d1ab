/* The neighbours of all atoms of one crystal, by four strategies; the numbers of `cgnn.graph.neighbors`, in one pass.
 *
 * The lattice is reduced and the atoms are wrapped into it and sorted into bins of about half the cutoff, which lie
 * around each other as the cells do: an atom looks at the bins around its own, images of bins included. The cost is
 * linear in the number of atoms, in small and in large cells. A distance is computed from the positions and lattice as
 * given, operation by operation as in numpy, so that both ways give the same bits and the same order.
 *
 * Nothing is global; all memory belongs to one call. Sizes that can be large are int64.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

enum { NEAREST, SHELLS, RADIUS, CGCNN };
enum { DONE, TOO_MANY_IMAGES, TOO_MANY_PAIRS, TOO_FAR, NO_MEMORY };
enum {
    SOME = 64,    /* first room for distances */
    RUN = 12,     /* pairs sorted by insertion */
    LARGE = 1000, /* cells of more atoms are looked at for crowded corners before a search */
};

#define MAX_IMAGES 5e6 /* atoms in the images of the cell that a search may have to look at */
#define MAX_SHIFT 32767
#define MAX_CELLS 5e8 /* cells between an atom and the origin */
#define KEPT 1e-8     /* Å beyond the cutoff that a search keeps, as pymatgen's does */
#define TIE 1e-10     /* relative; pairs nearer than that to the limit of a strategy count as on it */
#define OVERLAP 1e-6  /* Å; atoms nearer than that lie on one spot */
#define SOFT 0.1      /* half the relative width over which a neighbour begins to count */
#define FADE 0.8      /* share of the largest cutoff where neighbours begin to count less */

typedef struct {
    double distance;
    int32_t source, shift[3];
} Pair;

typedef struct {
    Pair *items;
    int64_t count, capacity;
} Pairs;

typedef struct {
    int64_t strategy, k, max_edges;
    double reach, cutoff, tolerance;
} Settings;

typedef struct {
    int64_t count[3];       /* along each vector */
    double margin[3];       /* how many bins the cutoff reaches along each vector */
    int64_t *start, *items; /* atoms of bin b: items[start[b]] .. items[start[b+1]] */
    double *pos;            /* (N, 3) wrapped positions in the order of items */
} Bins;

typedef struct {
    int64_t atoms;
    const double *pos, *lattice; /* as given */
    double volume, heights[3];
    double cells[3][3];             /* the reduced vectors in terms of the given ones, whole numbers */
    double reduced[9];
    double *wrapped, *part, *origin; /* (N, 3) positions in the reduced cell, Å; in units of its vectors; their cells */
    double slack;                    /* Å, more than rounding may do to a position */
    Bins bins;
    int64_t *first, *number;        /* (N) where an atom's edges lie among the kept ones */
    double *reach;                  /* (N) */
    Pairs near, found, sorted, kept;
    double *distances;
    int64_t distances_capacity;
    double report[2];               /* what was too much, and the cutoff where it was noticed */
} Search;

/* fmin and fmax are calls where NaN has to be minded. */
static inline double min_(double x, double y) { return x < y ? x : y; }

static inline double max_(double x, double y) { return x > y ? x : y; }

static double dot(const double *u, const double *v) { return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]; }

static void cross(const double *u, const double *v, double *w) {
    w[0] = u[1] * v[2] - u[2] * v[1];
    w[1] = u[2] * v[0] - u[0] * v[2];
    w[2] = u[0] * v[1] - u[1] * v[0];
}

static double volume_of(const double m[9]) {
    double w[3];
    cross(m + 3, m + 6, w);
    return fabs(dot(m, w));
}

/* The distances between opposite faces of the cell. */
static void heights_of(const double m[9], double heights[3]) {
    double volume = volume_of(m), w[3];
    for (int axis = 0; axis < 3; axis++) {
        cross(m + 3 * ((axis + 1) % 3), m + 3 * ((axis + 2) % 3), w);
        heights[axis] = volume / sqrt(dot(w, w));
    }
}

static int grow(Pairs *pairs, int64_t wanted) {
    int64_t capacity = pairs->capacity ? pairs->capacity : 256;
    while (capacity < wanted) capacity *= 2;
    Pair *items = realloc(pairs->items, (size_t)capacity * sizeof(Pair));
    if (!items) return NO_MEMORY;
    pairs->items = items;
    pairs->capacity = capacity;
    return DONE;
}

/* Order: by distance, equals by source and cell. */

static inline int before(const Pair *p, const Pair *q) {
    if (p->distance != q->distance) return p->distance < q->distance;
    if (p->source != q->source) return p->source < q->source;
    for (int axis = 0; axis < 3; axis++)
        if (p->shift[axis] != q->shift[axis]) return p->shift[axis] < q->shift[axis];
    return 0;
}

static void sort_run(Pair *items, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        Pair moved = items[i];
        int64_t j = i;
        for (; j > 0 && before(&moved, &items[j - 1]); j--) items[j] = items[j - 1];
        items[j] = moved;
    }
}

/* Merge sort of short sorted runs; `other` has room for all. Returns where the sorted pairs lie. */
static Pair *sort(Pair *items, Pair *other, int64_t count) {
    for (int64_t at = 0; at < count; at += RUN) sort_run(items + at, count - at < RUN ? count - at : RUN);
    for (int64_t width = RUN; width < count; width *= 2) {
        for (int64_t at = 0; at < count; at += 2 * width) {
            int64_t middle = at + width < count ? at + width : count;
            int64_t end = at + 2 * width < count ? at + 2 * width : count;
            int64_t left = at, right = middle;
            for (int64_t to = at; to < end; to++)
                other[to] = left < middle && (right >= end || !before(&items[right], &items[left])) ? items[left++]
                                                                                                      : items[right++];
        }
        Pair *swap = items;
        items = other;
        other = swap;
    }
    return items;
}

/* The value that would stand at place `rank` if x were sorted; x is shuffled. */
static double select_(double *x, int64_t count, int64_t rank) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        double pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] < pivot) i++;
            while (pivot < x[j]) j--;
            if (i <= j) {
                double swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (rank <= j) high = j;
        else if (rank >= i) low = i;
        else break;
    }
    return x[rank];
}

/* Subtract whole multiples of the vectors from each other as long as that shortens one. */
static void reduce(double m[9], double cells[3][3]) {
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) cells[i][j] = i == j;
    int is_changed = 1;
    for (int round = 0; round < 100 && is_changed; round++) {
        is_changed = 0;
        for (int step = 0; step < 6; step++) {
            int i = step % 3, j = (i + 1 + step / 3) % 3;
            double times = rint(dot(m + 3 * i, m + 3 * j) / dot(m + 3 * j, m + 3 * j));
            double shorter[3], size = 0;
            for (int axis = 0; axis < 3; axis++) {
                shorter[axis] = m[3 * i + axis] - times * m[3 * j + axis];
                size = max_(size, fabs(cells[i][axis]) + fabs(times * cells[j][axis]));
            }
            if (!(size < 1e6) || !(dot(shorter, shorter) < (1 - 1e-9) * dot(m + 3 * i, m + 3 * i))) continue;
            for (int axis = 0; axis < 3; axis++) {
                m[3 * i + axis] = shorter[axis];
                cells[i][axis] -= times * cells[j][axis];
            }
            is_changed = 1;
        }
    }
}

/* Wrap the positions into the reduced cell. */
static int wrap(Search *search) {
    double *m = search->reduced, across[3][3], far = 0;
    memcpy(m, search->lattice, sizeof search->reduced);
    reduce(m, search->cells);
    heights_of(m, search->heights);
    for (int axis = 0; axis < 3; axis++) {
        cross(m + 3 * ((axis + 1) % 3), m + 3 * ((axis + 2) % 3), across[axis]);
        double scale = dot(across[axis], m + 3 * axis);
        for (int i = 0; i < 3; i++) {
            across[axis][i] /= scale;
            double multiple = fabs(search->cells[axis][i]);
            far = max_(far, multiple * sqrt(dot(search->lattice + 3 * i, search->lattice + 3 * i)));
        }
    }
    for (int64_t atom = 0; atom < search->atoms; atom++) {
        const double *given = search->pos + 3 * atom;
        double *part = search->part + 3 * atom, *origin = search->origin + 3 * atom;
        for (int axis = 0; axis < 3; axis++) {
            double cells = dot(across[axis], given);
            if (!(fabs(cells) < MAX_CELLS)) return TOO_FAR;
            far = max_(far, fabs(given[axis]));
            origin[axis] = floor(cells);
            part[axis] = cells - origin[axis];
        }
        for (int i = 0; i < 3; i++)
            search->wrapped[3 * atom + i] = given[i] - (origin[0] * m[i] + origin[1] * m[3 + i] + origin[2] * m[6 + i]);
    }
    search->slack = 1e-7 + 1e-13 * far;
    return DONE;
}

static inline int64_t bin_along(const Search *search, int64_t atom, int axis) {
    const int64_t count = search->bins.count[axis], bin = (int64_t)(search->part[3 * atom + axis] * (double)count);
    return bin < count ? bin : count - 1;
}

/* Sort the atoms into bins of half the cutoff or more; bins stay fewer than atoms. */
static void fill_bins(Search *search, double cutoff) {
    Bins *bins = &search->bins;
    const double wide = cutoff + search->slack;
    for (int axis = 0; axis < 3; axis++)
        bins->count[axis] = (int64_t)max_(min_(2 * search->heights[axis] / wide, 1e6), 1);
    while (bins->count[0] * bins->count[1] * bins->count[2] > search->atoms) {
        int most = bins->count[0] >= bins->count[1] ? 0 : 1;
        if (bins->count[2] > bins->count[most]) most = 2;
        bins->count[most] = (bins->count[most] + 1) / 2;
    }
    for (int axis = 0; axis < 3; axis++)
        bins->margin[axis] = wide * (double)bins->count[axis] / search->heights[axis];
    const int64_t total = bins->count[0] * bins->count[1] * bins->count[2];
    memset(bins->start, 0, (size_t)(total + 1) * sizeof(int64_t));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t atom = 0; atom < search->atoms; atom++) {
            int64_t bin = 0;
            for (int axis = 0; axis < 3; axis++) bin = bin * bins->count[axis] + bin_along(search, atom, axis);
            if (!pass) bins->start[bin]++;
            else {
                int64_t place = --bins->start[bin];
                bins->items[place] = atom;
                memcpy(bins->pos + 3 * place, search->wrapped + 3 * atom, 3 * sizeof(double));
            }
        }
        if (pass) break;
        for (int64_t bin = 0; bin < total; bin++) bins->start[bin + 1] += bins->start[bin];
    }
}

/* Collect the atoms of one image of a bin that lie within the cutoff, roughly. There is no branch to be guessed: every
 * atom is written down, and the next one over it if it lies outside. */
static int look(Search *search, int64_t target, int64_t bin, const int32_t image[3], double cutoff) {
    const double *m = search->reduced, *at = search->wrapped + 3 * target;
    const double a = image[0], b = image[1], c = image[2], wide = cutoff + search->slack, limit = wide * wide;
    const double x = a * m[0] + b * m[3] + c * m[6] - at[0], y = a * m[1] + b * m[4] + c * m[7] - at[1],
                 z = a * m[2] + b * m[5] + c * m[8] - at[2];
    const int64_t first = search->bins.start[bin], last = search->bins.start[bin + 1];
    Pairs *near = &search->near;
    if (near->count + last - first > near->capacity && grow(near, near->count + last - first) != DONE) return NO_MEMORY;
    Pair *next = near->items + near->count;
    for (int64_t item = first; item < last; item++) {
        const double *other = search->bins.pos + 3 * item;
        const double dx = other[0] + x, dy = other[1] + y, dz = other[2] + z;
        next->source = (int32_t)search->bins.items[item];
        memcpy(next->shift, image, sizeof next->shift);
        next += dx * dx + dy * dy + dz * dz <= limit;
    }
    near->count = next - near->items;
    return DONE;
}

/* Turn what was collected into pairs: cells of the given lattice, and distances as numpy computes them. */
static int measure(Search *search, int64_t target, double limit) {
    const double *m = search->lattice, *q = search->pos + 3 * target, *home = search->origin + 3 * target;
    Pairs *near = &search->near, *found = &search->found;
    if (near->count > found->capacity && grow(found, near->count) != DONE) return NO_MEMORY;
    Pair *next = found->items;
    for (const Pair *pair = near->items; pair < near->items + near->count; pair++) {
        const double *p = search->pos + 3 * (int64_t)pair->source, *origin = search->origin + 3 * (int64_t)pair->source;
        double shift[3] = {0, 0, 0}, v[3];
        for (int i = 0; i < 3; i++)
            for (int axis = 0; axis < 3; axis++)
                shift[axis] += (pair->shift[i] + home[i] - origin[i]) * search->cells[i][axis];
        for (int axis = 0; axis < 3; axis++) {
            if (!(fabs(shift[axis]) < 2e9)) return TOO_FAR;
            next->shift[axis] = (int32_t)shift[axis];
            v[axis] = (p[axis] - q[axis]) + ((shift[0] * m[axis] + shift[1] * m[3 + axis]) + shift[2] * m[6 + axis]);
        }
        next->source = pair->source;
        next->distance = sqrt((v[0] * v[0] + v[1] * v[1]) + v[2] * v[2]);
        const int is_itself = pair->source == target && !next->shift[0] && !next->shift[1] && !next->shift[2];
        next += next->distance <= limit && !is_itself;
    }
    found->count = next - found->items;
    return DONE;
}

/* A walk along one vector, over bins and on into the neighbouring cells. */
typedef struct {
    int64_t bin, image, left;
} Walk;

static inline Walk begin(const Bins *bins, int axis, double part) {
    const double at = part * (double)bins->count[axis];
    const int64_t first = (int64_t)floor(at - bins->margin[axis]), last = (int64_t)floor(at + bins->margin[axis]);
    const int64_t image = (int64_t)floor((double)first / (double)bins->count[axis]);
    return (Walk){first - image * bins->count[axis], image, last - first + 1};
}

static inline void step(Walk *walk, int64_t count) {
    walk->left--;
    if (++walk->bin < count) return;
    walk->bin = 0;
    walk->image++;
}

/* Find all neighbours of one atom up to a cutoff, in no particular order. */
static int find(Search *search, int64_t target, double cutoff) {
    const Bins *bins = &search->bins;
    const double *part = search->part + 3 * target;
    const Walk second = begin(bins, 1, part[1]), third = begin(bins, 2, part[2]);
    search->near.count = 0;
    for (Walk i = begin(bins, 0, part[0]); i.left; step(&i, bins->count[0]))
        for (Walk j = second; j.left; step(&j, bins->count[1])) {
            const int64_t row = (i.bin * bins->count[1] + j.bin) * bins->count[2];
            for (Walk k = third; k.left; step(&k, bins->count[2])) {
                const int32_t image[3] = {(int32_t)i.image, (int32_t)j.image, (int32_t)k.image};
                int code = look(search, target, row + k.bin, image, cutoff);
                if (code != DONE) return code;
            }
        }
    return measure(search, target, cutoff + KEPT);
}

/* The limits, before memory and time are taken. */

static int check_images(Search *search, double cutoff) {
    double heights[3], images = 1;
    heights_of(search->lattice, heights);
    for (int axis = 0; axis < 3; axis++) images *= 2 * ceil(cutoff / heights[axis]) + 1;
    search->report[0] = images;
    search->report[1] = cutoff;
    return (double)search->atoms * images <= MAX_IMAGES ? DONE : TOO_MANY_IMAGES;
}

static int check_pairs(Search *search, const Settings *settings, double cutoff, double expected) {
    search->report[0] = expected;
    search->report[1] = cutoff;
    return expected <= max_(4.0 * (double)settings->max_edges, 1e6) ? DONE : TOO_MANY_PAIRS;
}

/* What the mean density and the shape of the cell tell. */
static int check_cell(Search *search, const Settings *settings, double cutoff) {
    double atoms = (double)search->atoms;
    int code = check_pairs(search, settings, cutoff, 4.0 / 3 * M_PI * cutoff * cutoff * cutoff * atoms * atoms /
                                                         search->volume);
    return code == DONE ? check_images(search, cutoff) : code;
}

/* Large cells may be crowded in one corner: count with half the cutoff. */
static int check_crowds(Search *search, const Settings *settings, double cutoff) {
    if (search->atoms <= LARGE) return DONE;
    double count = 0;
    fill_bins(search, cutoff / 2);
    for (int64_t atom = 0; atom < search->atoms; atom++) {
        int code = find(search, atom, cutoff / 2);
        if (code != DONE) return code;
        count += (double)search->found.count;
    }
    return check_pairs(search, settings, cutoff, 8 * count);
}

/* What each strategy keeps. */

/* A step from one (below start) to zero (above stop), twice continuously differentiable. */
static inline double falling(double x, double start, double stop, double *slope) {
    const double per_width = 1 / (stop - start), u = min_(max_((x - start) * per_width, 0), 1);
    *slope = -30 * (u * u) * ((1 - u) * (1 - u)) * per_width;
    return 1 - u * u * u * (10 - 15 * u + 6 * (u * u));
}

/* What a neighbour counts, the largest cutoff coming near. */
static double fading(double distance, double cutoff) {
    double unused;
    return distance <= FADE * cutoff ? 1 : falling(distance, FADE * cutoff, cutoff, &unused);
}

/* The radius within which k - 1/2 neighbours lie, counted smoothly; infinite where there are fewer. */
static double counted_radius(Search *search, const Settings *settings, double kth) {
    const double cutoff = settings->cutoff, wanted = (double)settings->k - 0.5;
    const int64_t count = search->found.count;
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += fading(search->found.items[i].distance, cutoff);
    if (!(total > wanted)) return INFINITY;
    kth = max_(kth, OVERLAP); /* k atoms on one spot: any radius holds them */
    double low = kth / (1 + SOFT), high = (kth < FADE * cutoff ? kth : cutoff) / (1 - SOFT);
    double radius = 0.5 * (low + kth / (1 - SOFT)), inner = 0;
    int64_t active = 0; /* the others count whole, or not at all, wherever between low and high the radius lies */
    for (int64_t i = 0; i < count; i++) {
        double distance = search->found.items[i].distance;
        if (distance <= (1 - SOFT) * low) inner += fading(distance, cutoff);
        else if (distance < (1 + SOFT) * high) search->distances[active++] = distance;
    }
    for (int round = 0; round < 60; round++) {
        double excess = inner - wanted, slope = 0, next;
        const double per_radius = 1 / radius;
        for (int64_t i = 0; i < active; i++) {
            double distance = search->distances[i], steepness, ratio = distance * per_radius;
            double weight = falling(ratio, 1 - SOFT, 1 + SOFT, &steepness);
            double share = fading(distance, cutoff);
            excess += weight * share;
            slope -= steepness * share * ratio;
        }
        if (excess < 0) low = radius;
        else high = radius;
        next = radius - excess / max_(slope * per_radius, 1e-300);
        if (!(next >= low && next <= high)) next = 0.5 * (low + high);
        const double change = fabs(next - radius);
        radius = next;
        if (change <= 1e-8 * radius) break; /* the error is of the order of the square of a Newton step */
    }
    return radius;
}

/* min(reach, cutoff) with the corner rounded off between 0.8 and 1.2 of the cutoff */
static double bounded(double reach, double cutoff) {
    double x = min_(reach / cutoff, 1.2), over = max_(x - 0.8, 0);
    return cutoff * (x - over * over / 0.8);
}

/* Keep the pairs of one atom that its strategy wants, sorted. */
static int keep(Search *search, const Settings *settings, int64_t target, double kth) {
    double limit, reach = INFINITY;
    if (settings->strategy == NEAREST) {
        reach = bounded(settings->reach * counted_radius(search, settings, kth), settings->cutoff);
        limit = reach * (1 - TIE);
    } else if (settings->strategy == SHELLS) {
        limit = min_((1 + settings->tolerance) * kth, settings->cutoff) * (1 + TIE); /* whole shells */
    } else if (settings->strategy == RADIUS) {
        reach = settings->cutoff;
        limit = reach * (1 - TIE);
    } else {
        limit = kth;
    }
    Pairs *found = &search->found, *sorted = &search->sorted;
    int64_t count = 0;
    for (int64_t i = 0; i < found->count; i++) { /* again without a branch */
        found->items[count] = found->items[i];
        count += found->items[i].distance <= limit;
    }
    if (sorted->capacity < count && grow(sorted, count) != DONE) return NO_MEMORY;
    const Pair *pairs = sort(found->items, sorted->items, count);
    if (settings->strategy == CGCNN && count > settings->k) count = settings->k;
    if (search->kept.capacity - search->kept.count < count && grow(&search->kept, search->kept.count + count) != DONE)
        return NO_MEMORY;
    for (int64_t i = 0; i < count; i++)
        for (int axis = 0; axis < 3; axis++)
            if (pairs[i].shift[axis] > MAX_SHIFT || pairs[i].shift[axis] < -MAX_SHIFT) return TOO_FAR;
    if (count) memcpy(search->kept.items + search->kept.count, pairs, (size_t)count * sizeof(Pair));
    search->first[target] = search->kept.count;
    search->number[target] = count;
    search->reach[target] = reach;
    search->kept.count += count;
    return DONE;
}

/* The distance of the k-th neighbour found, infinite where there are fewer. */
static int kth_distance(Search *search, int64_t k, double *kth) {
    const int64_t count = search->found.count;
    if (search->distances_capacity < count) {
        double *larger = realloc(search->distances, (size_t)(2 * count) * sizeof(double));
        if (!larger) return NO_MEMORY;
        search->distances = larger;
        search->distances_capacity = 2 * count;
    }
    for (int64_t i = 0; i < count; i++) search->distances[i] = search->found.items[i].distance;
    *kth = count >= k ? select_(search->distances, count, k - 1) : INFINITY;
    return DONE;
}

/* How much farther than to its k-th neighbour an atom must see. */
static double factor_of(const Settings *settings) {
    if (settings->strategy == NEAREST) return max_(max_(settings->reach, 1 + SOFT) / (1 - SOFT), 1 / FADE);
    return settings->strategy == SHELLS ? 1 + settings->tolerance : 1;
}

/* The radius of a sphere that holds what an atom must see on average, with a margin for uneven ones. */
static double first_cutoff(const Search *search, const Settings *settings) {
    if (settings->strategy == RADIUS) return settings->cutoff;
    double sphere = 3 * ((double)settings->k + 1) * (search->volume / (double)search->atoms) / (4 * M_PI);
    return min_(1.15 * factor_of(settings) * cbrt(sphere), settings->cutoff);
}

/* Search for the atoms that are not done yet; `most` is how far they must see. */
static int search_once(Search *search, const Settings *settings, double cutoff, double *most) {
    *most = 0;
    fill_bins(search, cutoff);
    for (int64_t atom = 0; atom < search->atoms; atom++) {
        if (search->first[atom] >= 0) continue;
        double kth = INFINITY;
        int code = find(search, atom, cutoff);
        if (code == DONE) code = kth_distance(search, settings->k, &kth);
        if (code != DONE) return code;
        double needed = factor_of(settings) * kth;
        *most = max_(*most, needed);
        if (cutoff >= min_(needed, settings->cutoff)) code = keep(search, settings, atom, kth);
        if (code != DONE) return code;
    }
    return DONE;
}

/* Search with a cutoff from the density, grown until all that every atom may want lies inside it. */
static int run(Search *search, const Settings *settings) {
    double most, cutoff = first_cutoff(search, settings);
    int code = check_cell(search, settings, cutoff);
    if (code == DONE) code = wrap(search);
    for (;;) {
        if (code == DONE) code = check_crowds(search, settings, cutoff);
        if (code == DONE) code = search_once(search, settings, cutoff, &most);
        if (code != DONE || cutoff >= min_(most, settings->cutoff)) return code;
        /* With every k-th neighbour known the second search is exact; before that the sphere only grows. */
        cutoff = min_(isfinite(most) ? most * (1 + 1e-9) : 1.4 * cutoff, settings->cutoff);
        code = check_cell(search, settings, cutoff);
    }
}

void neighbors_free(Search *search) {
    if (!search) return;
    free(search->wrapped);
    free(search->bins.start);
    free(search->first);
    free(search->near.items);
    free(search->found.items);
    free(search->sorted.items);
    free(search->kept.items);
    free(search->distances);
    free(search);
}

static int prepare(Search *search) {
    const size_t atoms = (size_t)search->atoms;
    search->volume = volume_of(search->lattice);
    search->wrapped = malloc(13 * atoms * sizeof(double));
    search->bins.start = malloc((2 * atoms + 2) * sizeof(int64_t));
    search->first = malloc(2 * atoms * sizeof(int64_t));
    search->distances = malloc(SOME * sizeof(double));
    if (!search->wrapped || !search->bins.start || !search->first || !search->distances) return NO_MEMORY;
    search->part = search->wrapped + 3 * atoms;
    search->origin = search->wrapped + 6 * atoms;
    search->bins.pos = search->wrapped + 9 * atoms;
    search->reach = search->wrapped + 12 * atoms;
    search->bins.items = search->bins.start + atoms + 2;
    search->number = search->first + atoms;
    search->distances_capacity = SOME;
    for (size_t atom = 0; atom < atoms; atom++) search->first[atom] = -1;
    return DONE;
}

/* Find the neighbours of a crystal.
 *
 * pos (N, 3) and lattice (3, 3, rows are vectors), Å, all finite, the volume not zero, N from 1 to 2^31 - 1; report
 * gets the code, the number of edges, and two numbers that belong to the code. Returns what `neighbors_take` and
 * `neighbors_free` want, or NULL where the code is not zero.
 */
Search *neighbors_search(const double *pos, const double *lattice, int64_t atoms, int64_t strategy, int64_t k,
                         int64_t max_edges, double reach, double cutoff, double tolerance, double *report) {
    const Settings settings = {strategy, k, max_edges, reach, cutoff, tolerance};
    Search *search = calloc(1, sizeof(Search));
    int code = NO_MEMORY;
    if (search) {
        search->atoms = atoms;
        search->pos = pos;
        search->lattice = lattice;
        code = prepare(search);
        if (code == DONE) code = run(search, &settings);
    }
    report[0] = code;
    report[1] = search ? (double)search->kept.count : 0;
    report[2] = search ? search->report[0] : 0;
    report[3] = search ? search->report[1] : 0;
    if (code == DONE) return search;
    neighbors_free(search);
    return NULL;
}

/* Copy what was found: distance (E), float64; kept: reach (N), float64, source and target (E), int32, and
 * shift (E, 3), int16, one behind the other. */
void neighbors_take(const Search *search, double *distance, void *kept) {
    double *reach = kept;
    int32_t *source = (int32_t *)(reach + search->atoms), *target = source + search->kept.count;
    int16_t *shift = (int16_t *)(target + search->kept.count);
    memcpy(reach, search->reach, (size_t)search->atoms * sizeof(double));
    for (int64_t atom = 0; atom < search->atoms; atom++) {
        const Pair *pairs = search->kept.items + search->first[atom];
        for (int64_t i = 0; i < search->number[atom]; i++) {
            *distance++ = pairs[i].distance;
            *source++ = pairs[i].source;
            *target++ = (int32_t)atom;
            for (int axis = 0; axis < 3; axis++) *shift++ = (int16_t)pairs[i].shift[axis];
        }
    }
}
