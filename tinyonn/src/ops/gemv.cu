// Products of a few rows with matrices that are each read once for all of them (gemv.rs has the formulas).
//
// Legend: b rows of x (ROWS at most), d inputs, m outputs, i neurons, n experts. x [b, d] and matrices [m, d] are bf16 where KEPT_IN_BF16, else f32. Every block holds the rows of x in
// shared memory, normalised where a norm's weight is given. Of one or two rows a warp takes an output; of more, in bf16, a block takes sixteen lines by tensor cores, its warps a
// share of d each. The first lines of the matrix are under way while x is normalised.

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

// Whether tensor cores multiply.
template <int ROWS>
__device__ constexpr bool by_tiles() { return HALF && ROWS == 8; }

// From one row of x to the next, in chunks; of tiles so that the rows that are read at once lie in other banks.
template <int ROWS>
__device__ unsigned stride(const Rows& of) { return of.chunks + (by_tiles<ROWS>() ? 4 : 0); }

template <int ROWS>
__device__ void hold(const Rows& of) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    const unsigned apart = stride<ROWS>(of);
    wait_for_the_launch_before();
    if (!of.norm) {
        for (unsigned b = 0; b < of.count; b++) {
            for (unsigned c = threadIdx.x; c < of.chunks; c += THREADS) Values::read(of.x, b * of.chunks + c, true).write(held, b * apart + c);
        }
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
            x.write(held, b * apart + c);
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
            const Values x = Values::read(held, b * apart + c, true), w = Values::read(of.norm, c, true);
            float y[N];
            for (int k = 0; k < N; k++) y[k] = as_stored(x[k] * root, HALF) * w[k];
            Values::of(y).write(held, b * apart + c);
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

// A warp's sums of an output, of up to two rows or in f32.
template <int ROWS, int M, class Where, class Write>
__device__ void products_by_lines(const Rows& of, unsigned outputs, Where where, Write write) {
    typedef Chunk<HALF> Values;
    const unsigned lane = threadIdx.x % 32;
    unsigned output = blockIdx.x * WARPS + threadIdx.x / 32;
    Lines<M> lines;
    bool asked = output < outputs && where(output, lines.line);
    lines.read(lane, of.chunks, asked);
    hold<ROWS>(of);
    while (output < outputs) {
        float sums[ROWS][M];
#pragma unroll
        for (int b = 0; b < ROWS; b++) {
#pragma unroll
            for (int m = 0; m < M; m++) sums[b][m] = 0.0f;
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
                        for (int k = 0; k < Values::N; k++) sums[b][m] += lines.own[m][a][k] * x[k];
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
#pragma unroll
        for (int b = 0; b < ROWS; b++) {
#pragma unroll
            for (int m = 0; m < M; m++) sums[b][m] = summed ? warp_sum(sums[b][m]) : 0.0f;
            if (b < of.count && lane == b) write(own, b, summed, sums[b]);
        }
    }
}

// A block's sums of sixteen lines, those of one matrix or eight of either of two: x is a product's right operand, whose columns are its rows. A lane takes one chunk of four that
// lie side by side: its values are an operand's, whatever the order of d, if those of x are the same.
template <int ROWS, int M, class Where, class Write>
__device__ void products_by_tiles(const Rows& of, unsigned outputs, Where where, Write write) {
    typedef Chunk<HALF> Values;
    const unsigned TILE = 16 / M;
    __shared__ float sums[WARPS][32][4];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, own_chunk = lane % 4, apart = stride<ROWS>(of);
    const unsigned tiles = (outputs + TILE - 1) / TILE, segments = (of.chunks + 3) / 4;
    Lines<2> lines; // of rows `row` and `row + 8` of the tile
    bool asked[2];
    auto begin = [&](unsigned tile) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned output = tile * TILE + row + (M == 1 ? 8 * half : 0);
            const void* line[M];
            asked[half] = tile < tiles && output < outputs && where(output, line);
            lines.line[half] = line[M == 1 ? 0 : half];
        }
    };
    auto read = [&](unsigned segment) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned at = 4 * (segment + WARPS * a) + own_chunk;
                lines.own[half][a] = Values::read(lines.line[half], at, asked[half] && at < of.chunks);
            }
        }
    };
    begin(blockIdx.x);
    read(warp);
    hold<ROWS>(of);
    for (unsigned tile = blockIdx.x; tile < tiles;) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (unsigned from = warp;;) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned segment = from + WARPS * a, at = 4 * segment + own_chunk;
                if (segment >= segments) continue;
                const Values x = Values::read(held, row * apart + at, row < of.count && at < of.chunks), &w = lines.own[0][a], &v = lines.own[1][a];
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                                 : "r"(w.words[k]), "r"(v.words[k]), "r"(w.words[k + 1]), "r"(v.words[k + 1]), "r"(x.words[k]), "r"(x.words[k + 1]));
                }
            }
            from += WARPS * AHEAD;
            if (from - warp >= segments) break;
            read(from);
        }
        const unsigned own = tile * TILE;
        tile += gridDim.x;
        begin(tile);
        read(warp);
        *(float4*)sums[warp][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        __syncthreads();
        const unsigned output = own + threadIdx.x / 8, b = threadIdx.x % 8;
        if (threadIdx.x < 8 * TILE && output < outputs && b < of.count) {
            float all[M];
#pragma unroll
            for (int m = 0; m < M; m++) {
                const unsigned line = threadIdx.x / 8 + 8 * m, from = line % 8 * 4 + b / 2, at = line / 8 * 2 + b % 2;
                all[m] = 0.0f;
                for (int other = 0; other < WARPS; other++) all[m] += sums[other][from][at];
            }
            const void* line[M];
            write(output, b, where(output, line), all);
        }
        __syncthreads();
    }
}

// Σ_d x w of every output and row: `where(output, line)` says where its lines lie, and whether anybody asks for it, which it reads of an earlier launch if it `asks`;
// `write(output, b, asked, sums)` is called once for each.
template <int ROWS, int M, class Where, class Write>
__device__ void products(const Rows& of, unsigned outputs, bool asks, Where where, Write write) {
    let_the_next_launch_begin();
    if (asks) wait_for_the_launch_before();
    if constexpr (by_tiles<ROWS>()) products_by_tiles<ROWS, M>(of, outputs, where, write);
    else products_by_lines<ROWS, M>(of, outputs, where, write);
}

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
        of, all, false,
        [&](unsigned output, const void*(&line)[1]) {
            const void* of_matrix = output < first ? w0 : output < second ? w1 : w2;
            line[0] = (const char*)of_matrix + (output - (output < first ? 0 : output < second ? first : second)) * bytes;
            return true;
        },
        [&](unsigned output, unsigned b, bool, float(&sums)[1]) {
            const void* bias = output < first ? b0 : output < second ? b1 : b2;
            const unsigned own = output - (output < first ? 0 : output < second ? first : second);
            const u64 at = (u64)b * all + output;
            float sum = as_stored(sums[0], rounds);
            if (bias) sum = as_stored(sum + load_one(bias, own, HALF), rounds);
            if (residual) sum += load_one(residual, at, HALF);
            store_one(y, at, half_y, sum);
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
        of, neurons, gates,
        [&](unsigned i, const void*(&line)[2]) {
            line[0] = (const char*)w_gate + i * bytes;
            line[1] = (const char*)w_up + i * bytes;
            if (!gates) return true;
            const unsigned owner = owners[i];
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= load_one(gates, b * experts + owner, HALF) != 0.0f;
            return open;
        },
        [&](unsigned i, unsigned b, bool open, float(&sums)[2]) {
            float value = 0.0f;
            if (open) value = as_stored(activated(as_stored(sums[0], HALF), as_stored(sums[1], HALF), gelu), HALF);
            if (open && gates) value = as_stored(value * load_one(gates, b * experts + owners[i], HALF), HALF);
            h[(u64)b * neurons + i] = value;
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
        of, neurons, gates,
        [&](unsigned i, const void*(&line)[1]) {
            line[0] = (const char*)w_gate + i * bytes;
            if (candidates && candidates[i] == 0.0f) return false;
            if (!gates) return true;
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= load_one(gates, b * experts + owners[i], HALF) != 0.0f;
            return open;
        },
        [&](unsigned i, unsigned b, bool open, float(&sums)[1]) {
            const u64 at = (u64)b * neurons + i;
            const float gate = !open ? 0.0f : gates ? load_one(gates, b * experts + owners[i], HALF) : 1.0f;
            const float own = as_stored(sums[0], HALF);
            float score = fabsf(activated(own, mean_up[i], gelu)) * worth[i];
            if (score != score) score = __int_as_float(0x7f800000);
            g[at] = own;
            scores[at] = gate != 0.0f ? score : -1.0f;
            taken[at] = gate != 0.0f && score >= least ? gate : 0.0f;
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
        of, neurons, true,
        [&](unsigned i, const void*(&line)[1]) {
            line[0] = (const char*)w_up + i * bytes;
            bool open = false;
            for (unsigned b = 0; b < of.count; b++) open |= taken[(u64)b * neurons + i] != 0.0f;
            return open;
        },
        [&](unsigned i, unsigned b, bool, float(&sums)[1]) {
            const u64 at = (u64)b * neurons + i;
            float value = 0.0f;
            if (taken[at] != 0.0f) value = as_stored(as_stored(activated(g[at], as_stored(sums[0], HALF), gelu), HALF) * taken[at], HALF);
            h[at] = value;
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
OF_ROWS(8)
