// Products of a few rows with matrices that are each read once for all of them (gemv.rs has the formulas; row_products.cu says how sums are formed).
//
// Legend: b rows of x (ROWS at most), d inputs, m outputs, i neurons, n experts. Neurons of which some may stand apart are found first, as bits (open_neurons.cu): the lines of the
// others are dealt to all warps, whatever experts they are of.

// Outputs of up to three matrices side by side, each with a bias or without; behind a residual x [b, m], if there is one. Sums are rounded as they would be stored,
// unless `wide`.
#define PROJECT                                                                                                                                  \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w0, const void *w1, const void *w2, const void *b0, const void *b1, \
        const void *b2, u64 m0, u64 m1, u64 m2, const void *residual, void *y, u64 half_y, u64 wide
template <int ROWS>
__device__ void project(PROJECT) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const unsigned first = m0, second = first + m1, all = second + m2;
    const u64 bytes = d * (HALF ? 2 : 4);
    const bool rounds = HALF && !wide;
    let_the_next_launch_begin();
    products<ROWS, 1, true>(
        of, all, Every{},
        [&](unsigned output, const void*(&line)[1]) {
            const void* of_matrix = output < first ? w0 : output < second ? w1 : w2;
            line[0] = (const char*)of_matrix + (output - (output < first ? 0 : output < second ? first : second)) * bytes;
        },
        [&](unsigned output, unsigned b) {
            const void* bias = output < first ? b0 : output < second ? b1 : b2;
            const unsigned own = output - (output < first ? 0 : output < second ? first : second);
            return Beside{bias ? load_one(bias, own, HALF) : 0.0f, residual ? load_one(residual, (u64)b * all + output, HALF) : 0.0f, bias ? 1.0f : 0.0f};
        },
        [&](unsigned output, unsigned b, Beside beside, float(&sums)[1]) {
            float sum = as_stored(sums[0], rounds);
            if (beside.z != 0.0f) sum = as_stored(sum + beside.x, rounds);
            if (residual) sum += beside.y;
            store_one(y, (u64)b * all + output, half_y, sum);
        });
}

// Owners of neurons as the block keeps them: those that do not stand for choice have none.
const unsigned short NOBODY = 0xffff;

struct Kept {
    Open open;
    unsigned short* owner; // [neurons]
    unsigned char* opened; // [experts]

    __device__ Kept(void* behind, unsigned neurons) {
        open.words = (neurons + 31) / 32;
        open.bits = (unsigned*)behind, open.before = open.bits + open.words;
        owner = (unsigned short*)(open.before + open.words);
        opened = (unsigned char*)(owner + open.words * 32);
    }

    // What no launch of a step writes: before the wait.
    __device__ void own(const unsigned* owners, const float* candidates, unsigned neurons) {
#pragma unroll 8
        for (unsigned i = threadIdx.x; i < neurons; i += THREADS) owner[i] = candidates && candidates[i] == 0.0f ? NOBODY : owners ? owners[i] : 0;
    }

    // Those of experts that a row takes.
    __device__ void find(const void* gates, unsigned experts, unsigned rows, unsigned neurons) {
        for (unsigned n = threadIdx.x; n < (gates ? experts : 1); n += THREADS) {
            bool any = !gates;
            for (unsigned b = 0; b < rows && gates; b++) any |= load_one(gates, b * experts + n, HALF) != 0.0f;
            opened[n] = any;
        }
        __syncthreads();
        open.find<THREADS>(neurons, [&](unsigned i) { return owner[i] != NOBODY && opened[owner[i]]; });
    }
};

// h [b, i] f32 of a gated linear unit, unless ALL take part times the gates of experts [b, n]: an expert that no row takes is not read.
#define GLU                                                                                                                           \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_gate, const void *w_up, const void *gates, const unsigned *owners, \
        u64 experts, u64 neurons, u64 gelu, float *h
template <int ROWS, bool ALL>
__device__ void glu(GLU) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    let_the_next_launch_begin();
    auto where = [&](unsigned i, const void*(&line)[2]) {
        line[0] = (const char*)w_gate + i * bytes;
        line[1] = (const char*)w_up + i * bytes;
    };
    auto value = [&](float(&sums)[2]) { return as_stored(activated(as_stored(sums[0], HALF), as_stored(sums[1], HALF), gelu), HALF); };
    if constexpr (ALL) {
        products<ROWS, 2, true>(of, neurons, Every{}, where, [&](unsigned, unsigned) { return Beside{}; },
                                [&](unsigned i, unsigned b, Beside, float(&sums)[2]) { h[(u64)b * neurons + i] = value(sums); });
    } else {
        Kept kept(behind_rows<ROWS>(of), neurons);
        kept.own(owners, 0, neurons);
        wait_for_the_launch_before();
        kept.find(gates, experts, of.count, neurons);
        const unsigned at = blockIdx.x * THREADS + threadIdx.x;
        for (unsigned i = at; i < neurons; i += gridDim.x * THREADS) {
            for (unsigned b = 0; b < of.count && !kept.open.has(i); b++) h[(u64)b * neurons + i] = 0.0f;
        }
        products<ROWS, 2, false>(of, kept.open.count, kept.open, where, [&](unsigned i, unsigned b) { return Beside{load_one(gates, b * experts + kept.owner[i], HALF)}; },
                                 [&](unsigned i, unsigned b, Beside gate, float(&sums)[2]) {
                                     h[(u64)b * neurons + i] = as_stored(value(sums) * gate.x, HALF);
                                 });
    }
}

// Neurons that choose themselves: g [b, i], s = |h(g, ū)| v, and the gate of every neuron that stands for choice and whose score is at least `least`, else 0; scores of
// the others are -1. ALL: every neuron stands for choice, with a gate of one.
#define SCORES                                                                                                                          \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_gate, const void *gates, const unsigned *owners, u64 experts, \
        const float *candidates, const float *mean_up, const float *worth, float least, u64 neurons, u64 gelu, float *g, float *scores, float *taken
template <int ROWS, bool ALL>
__device__ void score(SCORES) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    let_the_next_launch_begin();
    auto where = [&](unsigned i, const void*(&line)[1]) { line[0] = (const char*)w_gate + i * bytes; };
    auto write = [&](unsigned i, unsigned b, Beside beside, float(&sums)[1]) {
        const u64 at = (u64)b * neurons + i;
        const float own = as_stored(sums[0], HALF);
        float score = fabsf(activated(own, beside.x, gelu)) * beside.y;
        if (score != score) score = __int_as_float(0x7f800000);
        g[at] = own;
        scores[at] = beside.z != 0.0f ? score : -1.0f;
        taken[at] = beside.z != 0.0f && score >= least ? beside.z : 0.0f;
    };
    if constexpr (ALL) {
        products<ROWS, 1, true>(of, neurons, Every{}, where, [&](unsigned i, unsigned) { return Beside{mean_up[i], worth[i], 1.0f}; }, write);
    } else {
        Kept kept(behind_rows<ROWS>(of), neurons);
        kept.own(owners, candidates, neurons);
        wait_for_the_launch_before();
        kept.find(gates, experts, of.count, neurons);
        const unsigned at = blockIdx.x * THREADS + threadIdx.x;
        for (unsigned i = at; i < neurons; i += gridDim.x * THREADS) {
            for (unsigned b = 0; b < of.count && !kept.open.has(i); b++) scores[(u64)b * neurons + i] = -1.0f, taken[(u64)b * neurons + i] = 0.0f;
        }
        products<ROWS, 1, false>(of, kept.open.count, kept.open, where,
                                 [&](unsigned i, unsigned b) { return Beside{mean_up[i], worth[i], gates ? load_one(gates, b * experts + kept.owner[i], HALF) : 1.0f}; }, write);
    }
}

// Of each row of x, normalised, the channels that W_g reads: those of which |x| n is not below `least`; zeros for the others. [b, d] f32, a block a row.
extern "C" __global__ void __launch_bounds__(THREADS) read_channels(const void *x, const void *norm, float eps, u64 d, const float *size, float least, float *read) {
    __shared__ float of_warp[WARPS];
    const u64 row = blockIdx.x * d;
    let_the_next_launch_begin();
    wait_for_the_launch_before();
    float root = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (unsigned j = threadIdx.x; j < d; j += THREADS) {
            const float own = load_one(x, row + j, HALF);
            sum += own * own;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
        __syncthreads();
        float all = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) all += of_warp[warp];
        root = 1.0f / sqrtf(all / d + eps);
    }
    for (unsigned j = threadIdx.x; j < d; j += THREADS) {
        float own = load_one(x, row + j, HALF);
        if (norm) own = as_stored(as_stored(own * root, HALF) * load_one(norm, j, HALF), HALF);
        read[row + j] = fabsf(own) * size[j] < least ? 0.0f : own;
    }
}

// As `scores`, of gate values [b, c] that are there: of candidates alone, `place` [i] tells which one a neuron is, or NOWHERE.
const unsigned NOWHERE = 0xffffffff;
extern "C" __global__ void __launch_bounds__(THREADS) scores_of(const void *values, const unsigned *place, u64 count, const float *mean_up, const float *worth,
                                                                float least, u64 neurons, u64 gelu, float *g, float *scores, float *taken) {
    const unsigned i = blockIdx.x * THREADS + threadIdx.x, b = blockIdx.y;
    let_the_next_launch_begin();
    const unsigned at = i < neurons ? place ? place[i] : i : NOWHERE;
    wait_for_the_launch_before();
    if (i >= neurons) return;
    const u64 to = (u64)b * neurons + i;
    const float own = at == NOWHERE ? 0.0f : load_one(values, (u64)b * count + at, HALF);
    float score = fabsf(activated(own, mean_up[i], gelu)) * worth[i];
    if (score != score) score = __int_as_float(0x7f800000);
    g[to] = own;
    scores[to] = at == NOWHERE ? -1.0f : score;
    taken[to] = at != NOWHERE && score >= least ? 1.0f : 0.0f;
}

// h [b, i] f32 of neurons that were taken, of which g is there: the others are not read. Zero where |h| v is below `least`, whose lines of W_d are then not read.
#define UP                                                                                                                            \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_up, const float *g, const float *taken, const float *worth, float least, u64 neurons, u64 gelu, float *h
template <int ROWS>
__device__ void up(UP) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    let_the_next_launch_begin();
    Kept kept(behind_rows<ROWS>(of), neurons);
    wait_for_the_launch_before();
    kept.open.find<THREADS>(neurons, [&](unsigned i) {
        bool any = false;
        for (unsigned b = 0; b < of.count; b++) any |= taken[(u64)b * neurons + i] != 0.0f;
        return any;
    });
    const unsigned at = blockIdx.x * THREADS + threadIdx.x;
    for (unsigned i = at; i < neurons; i += gridDim.x * THREADS) {
        for (unsigned b = 0; b < of.count && !kept.open.has(i); b++) h[(u64)b * neurons + i] = 0.0f;
    }
    products<ROWS, 1, false>(
        of, kept.open.count, kept.open, [&](unsigned i, const void*(&line)[1]) { line[0] = (const char*)w_up + i * bytes; },
        [&](unsigned i, unsigned b) { return Beside{g[(u64)b * neurons + i], taken[(u64)b * neurons + i], worth[i]}; },
        [&](unsigned i, unsigned b, Beside beside, float(&sums)[1]) {
            const float own = as_stored(activated(beside.x, as_stored(sums[0], HALF), gelu), HALF);
            const bool open = beside.y != 0.0f && !(fabsf(own) * beside.z < least);
            h[(u64)b * neurons + i] = open ? as_stored(own * beside.y, HALF) : 0.0f;
        });
}

#define KERNEL(ROWS) extern "C" __global__ void __launch_bounds__(THREADS, ROWS == 8 ? 1 : BLOCKS)
#define OF_ROWS(ROWS)                                                                                                                 \
    KERNEL(ROWS) project_##ROWS(PROJECT) {                                                                                            \
        project<ROWS>(x, norm, eps, rows, d, w0, w1, w2, b0, b1, b2, m0, m1, m2, residual, y, half_y, wide);                          \
    }                                                                                                                                 \
    KERNEL(ROWS) glu_##ROWS(GLU) { glu<ROWS, true>(x, norm, eps, rows, d, w_gate, w_up, gates, owners, experts, neurons, gelu, h); }  \
    KERNEL(ROWS) gated_glu_##ROWS(GLU) { glu<ROWS, false>(x, norm, eps, rows, d, w_gate, w_up, gates, owners, experts, neurons, gelu, h); } \
    KERNEL(ROWS) scores_##ROWS(SCORES) {                                                                                              \
        score<ROWS, true>(x, norm, eps, rows, d, w_gate, gates, owners, experts, candidates, mean_up, worth, least, neurons, gelu, g, scores, taken); \
    }                                                                                                                                 \
    KERNEL(ROWS) gated_scores_##ROWS(SCORES) {                                                                                        \
        score<ROWS, false>(x, norm, eps, rows, d, w_gate, gates, owners, experts, candidates, mean_up, worth, least, neurons, gelu, g, scores, taken); \
    }                                                                                                                                 \
    KERNEL(ROWS) up_##ROWS(UP) { up<ROWS>(x, norm, eps, rows, d, w_up, g, taken, worth, least, neurons, gelu, h); }

OF_ROWS(1)
OF_ROWS(2)
OF_ROWS(8)
