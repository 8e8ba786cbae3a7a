// Products of a few rows with matrices that are each read once for all of them (gemv.rs has the formulas).
//
// Legend: b rows of x (ROWS at most), d inputs, m outputs, i neurons, n experts. x [b, d] and matrices [m, d] are bf16 where KEPT_IN_BF16, else f32. Every block holds the rows of x in
// shared memory, normalised where a norm's weight is given; a warp takes an output, whose line of the matrix is under way while x is normalised.

const int THREADS = 256;
const int WARPS = THREADS / 32;
const bool HALF = KEPT_IN_BF16;
const int AHEAD = 8; // chunks of a line that a lane has under way

extern __shared__ uint4 held[]; // x [b, d], in chunks

struct Rows {
    const void *x, *norm; // the norm's weight [d], or 0
    unsigned count, chunks;
    float eps;
};

template <int ROWS>
__device__ void hold(const Rows& of) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    if (!of.norm) {
        for (unsigned i = threadIdx.x; i < of.count * of.chunks; i += THREADS) Values::read(of.x, i, true).write(held, i);
        __syncthreads();
        return;
    }
    __shared__ float squares[WARPS][ROWS];
#pragma unroll
    for (unsigned b = 0; b < ROWS; b++) {
        float sum = 0.0f;
        for (unsigned c = threadIdx.x; b < of.count && c < of.chunks; c += THREADS) {
            const Values x = Values::read(of.x, b * of.chunks + c, true);
            for (int k = 0; k < N; k++) sum += x[k] * x[k];
            x.write(held, b * of.chunks + c);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32][b] = sum;
    }
    __syncthreads();
    for (unsigned b = 0; b < of.count; b++) {
        float sum = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) sum += squares[warp][b];
        const float root = 1.0f / sqrtf(sum / (of.chunks * N) + of.eps);
        // Every thread reads what it has written itself.
        for (unsigned c = threadIdx.x; c < of.chunks; c += THREADS) {
            const Values x = Values::read(held, b * of.chunks + c, true), w = Values::read(of.norm, c, true);
            float y[N];
            for (int k = 0; k < N; k++) y[k] = as_stored(x[k] * root, HALF) * w[k];
            Values::of(y).write(held, b * of.chunks + c);
        }
    }
    __syncthreads();
}

// Chunks of lines of M matrices on their way.
template <int M>
struct Lines {
    const void* line[M];
    Chunk<HALF> own[M][AHEAD];

    __device__ void read(unsigned from, unsigned chunks, bool there) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) own[m][a] = Chunk<HALF>::read(line[m], from + 32 * a, there && from + 32 * a < chunks);
        }
    }
};

// Σ_d x w of every output: `where(output, line)` says where its lines lie, and whether anybody asks for it; `write(output, asked, sums)` is called by all lanes of
// a warp with the sums of all rows.
template <int ROWS, int M, class Where, class Write>
__device__ void products(const Rows& of, unsigned outputs, Where where, Write write) {
    typedef Chunk<HALF> Values;
    const unsigned lane = threadIdx.x % 32;
    unsigned output = blockIdx.x * WARPS + threadIdx.x / 32;
    Lines<M> lines;
    bool asked = output < outputs && where(output, lines.line);
    lines.read(lane, of.chunks, asked);
    hold<ROWS>(of);
    while (output < outputs) {
        float sums[M][ROWS];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int b = 0; b < ROWS; b++) sums[m][b] = 0.0f;
        }
        for (unsigned from = 0; asked;) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned at = from + lane + 32 * a;
                if (at >= of.chunks) continue;
#pragma unroll
                for (int b = 0; b < ROWS; b++) {
                    if (b >= of.count) continue;
                    const Values x = Values::read(held, b * of.chunks + at, true);
#pragma unroll
                    for (int m = 0; m < M; m++) {
#pragma unroll
                        for (int k = 0; k < Values::N; k++) sums[m][b] += lines.own[m][a][k] * x[k];
                    }
                }
            }
            from += 32 * AHEAD;
            if (from >= of.chunks) break;
            lines.read(from + lane, of.chunks, true);
        }
        const unsigned own = output;
        const bool summed = asked;
        output += gridDim.x * WARPS;
        asked = output < outputs && where(output, lines.line);
        lines.read(lane, of.chunks, asked);
        if (summed) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int b = 0; b < ROWS; b++) sums[m][b] = warp_sum(sums[m][b]);
            }
        }
        write(own, summed, sums);
    }
}

__device__ bool writes(int b, const Rows& of) { return b < of.count && threadIdx.x % 32 == b; }

__device__ float activated(float g, float u, u64 gelu) {
    return gelu ? g * (0.5f + 0.5f * erff(g * 0.70710678f)) * u : g / (1.0f + expf(-g)) * u;
}

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
    products<ROWS, 1>(
        of, all,
        [&](unsigned output, const void*(&line)[1]) {
            const void* of_matrix = output < first ? w0 : output < second ? w1 : w2;
            line[0] = (const char*)of_matrix + (output - (output < first ? 0 : output < second ? first : second)) * bytes;
            return true;
        },
        [&](unsigned output, bool, float(&sums)[1][ROWS]) {
            const void* bias = output < first ? b0 : output < second ? b1 : b2;
            const unsigned own = output - (output < first ? 0 : output < second ? first : second);
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                if (!writes(b, of)) continue;
                const u64 at = (u64)b * all + output;
                float sum = as_stored(sums[0][b], rounds);
                if (bias) sum = as_stored(sum + load_one(bias, own, HALF), rounds);
                if (residual) sum += load_one(residual, at, HALF);
                store_one(y, at, half_y, sum);
            }
        });
}

// h [b, i] f32 of a gated linear unit, times the gates of experts [b, n], where there are any: an expert that no row takes is not read.
#define GLU                                                                                                                           \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_gate, const void *w_up, const void *gates, const unsigned *owners, \
        u64 experts, u64 neurons, u64 gelu, float *h
template <int ROWS>
__device__ void glu(GLU) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    products<ROWS, 2>(
        of, neurons,
        [&](unsigned i, const void*(&line)[2]) {
            line[0] = (const char*)w_gate + i * bytes;
            line[1] = (const char*)w_up + i * bytes;
            if (!gates) return true;
            const unsigned owner = owners[i];
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= load_one(gates, b * experts + owner, HALF) != 0.0f;
            return open;
        },
        [&](unsigned i, bool open, float(&sums)[2][ROWS]) {
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                if (!writes(b, of)) continue;
                float value = 0.0f;
                if (open) value = as_stored(activated(as_stored(sums[0][b], HALF), as_stored(sums[1][b], HALF), gelu), HALF);
                if (open && gates) value = as_stored(value * load_one(gates, b * experts + owners[i], HALF), HALF);
                h[(u64)b * neurons + i] = value;
            }
        });
}

// Neurons that choose themselves: g [b, i], s = |h(g, ū)| v, and the gate of every neuron that stands for choice and whose score is at least `least`, else 0; scores of
// the others are -1.
#define SCORES                                                                                                                          \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_gate, const void *gates, const unsigned *owners, u64 experts, \
        const float *candidates, const float *mean_up, const float *worth, float least, u64 neurons, u64 gelu, float *g, float *scores, float *taken
template <int ROWS>
__device__ void score(SCORES) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    products<ROWS, 1>(
        of, neurons,
        [&](unsigned i, const void*(&line)[1]) {
            line[0] = (const char*)w_gate + i * bytes;
            if (candidates && candidates[i] == 0.0f) return false;
            if (!gates) return true;
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= load_one(gates, b * experts + owners[i], HALF) != 0.0f;
            return open;
        },
        [&](unsigned i, bool open, float(&sums)[1][ROWS]) {
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                if (!writes(b, of)) continue;
                const u64 at = (u64)b * neurons + i;
                const float gate = !open ? 0.0f : gates ? load_one(gates, b * experts + owners[i], HALF) : 1.0f;
                const float own = as_stored(sums[0][b], HALF);
                float score = fabsf(activated(own, mean_up[i], gelu)) * worth[i];
                if (score != score) score = __int_as_float(0x7f800000);
                g[at] = own;
                scores[at] = gate != 0.0f ? score : -1.0f;
                taken[at] = gate != 0.0f && score >= least ? gate : 0.0f;
            }
        });
}

// h [b, i] f32 of neurons that were taken, of which g is there: the others are not read.
#define UP                                                                                                                            \
    const void *x, const void *norm, float eps, u64 rows, u64 d, const void *w_up, const float *g, const float *taken, u64 neurons, u64 gelu, float *h
template <int ROWS>
__device__ void up(UP) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    products<ROWS, 1>(
        of, neurons,
        [&](unsigned i, const void*(&line)[1]) {
            line[0] = (const char*)w_up + i * bytes;
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= taken[(u64)b * neurons + i] != 0.0f;
            return open;
        },
        [&](unsigned i, bool, float(&sums)[1][ROWS]) {
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                if (!writes(b, of)) continue;
                const u64 at = (u64)b * neurons + i;
                float value = 0.0f;
                if (taken[at] != 0.0f) value = as_stored(as_stored(activated(g[at], as_stored(sums[0][b], HALF), gelu), HALF) * taken[at], HALF);
                h[at] = value;
            }
        });
}

#define OF_ROWS(ROWS)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) project_##ROWS(PROJECT) {                                                   \
        project<ROWS>(x, norm, eps, rows, d, w0, w1, w2, b0, b1, b2, m0, m1, m2, residual, y, half_y, wide);                    \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) glu_##ROWS(GLU) {                                                           \
        glu<ROWS>(x, norm, eps, rows, d, w_gate, w_up, gates, owners, experts, neurons, gelu, h);                               \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) scores_##ROWS(SCORES) {                                                     \
        score<ROWS>(x, norm, eps, rows, d, w_gate, gates, owners, experts, candidates, mean_up, worth, least, neurons, gelu, g, \
                          scores, taken);                                                                                             \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) up_##ROWS(UP) {                                                             \
        up<ROWS>(x, norm, eps, rows, d, w_up, g, taken, neurons, gelu, h);                                                      \
    }

OF_ROWS(1)
OF_ROWS(2)
OF_ROWS(4)
OF_ROWS(8)
