// y = residual + Σ_i h_i W_i (+ b) of a few rows: sums of a matrix's lines by their weights, each line read once (gemv.rs has the formulas).
//
// Legend: b rows (ROWS at most), i lines of W [i, d], bf16 where KEPT_IN_BF16, else f32; h [b, i] f32; y [b, d]. Blocks: spans of lines, tiles of columns. Sixteen threads take the chunks of a
// tile, sixteen lines pass by at once. A span has one of every `spans` lines, so that those whose weights are not zeros are dealt evenly; where many are (SKIPS), the block looks for
// the others first. Of more rows, whose weights are read as they lie, a span is lines side by side. The block that comes last to a tile adds the sums of all spans, in their order.

const int THREADS = 256;
const int LANES = 16;        // chunks of a tile
const int FETCH_LINES = 256; // lines of a block that are fetched into the second cache while it waits
const int SLOTS = THREADS / LANES;
const bool HALF = KEPT_IN_BF16;
const int AHEAD = 8; // lines that a thread has under way

#define WEIGHTED const float *h, const void *w, const void *residual, const void *bias, float *parts, unsigned *arrived, void *y, u64 rows, u64 lines, u64 d

template <int ROWS, bool SKIPS>
__device__ void weighted(WEIGHTED) {
    typedef Chunk<HALF> Values;
    const int N = Values::N, COLUMNS = LANES * N;
    const bool DEALT = SKIPS || ROWS <= 2;
    extern __shared__ float own_h[]; // [ROWS, lines of the span], then the lines that take part
    __shared__ float sums[THREADS / 32][COLUMNS];
    __shared__ unsigned of_warp[THREADS / 32];
    __shared__ bool last;
    const unsigned spans = gridDim.x, most = (lines + spans - 1) / spans, begin = DEALT ? blockIdx.x : blockIdx.x * most;
    const unsigned own = DEALT ? (lines - blockIdx.x + spans - 1) / spans : begin < lines ? min(most, (unsigned)lines - begin) : 0; // lines of the span
    const unsigned chunks = d / N, chunk = blockIdx.y * LANES + threadIdx.x % LANES, slot = threadIdx.x / LANES, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool inside = chunk < chunks;
    auto of = [&](unsigned at) { return begin + at * (DEALT ? spans : 1); }; // a line of the span
    auto line = [&](unsigned at) { return (u64)of(at) * chunks; };
    Values ahead[AHEAD];
    let_the_next_launch_begin();
    if (!SKIPS) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const unsigned at = slot + SLOTS * a;
            ahead[a] = Values::read(w, line(at) + chunk, inside && at < own);
        }
        for (unsigned at = SLOTS * AHEAD + threadIdx.x; at < min(own, SLOTS * AHEAD + FETCH_LINES); at += THREADS) {
            fetch((const uint4*)w + line(at) + blockIdx.y * LANES, 16 * min(LANES, chunks - blockIdx.y * LANES));
        }
    }
    wait_for_the_launch_before();
    const unsigned column = blockIdx.y * COLUMNS + threadIdx.x;
    const float before = residual && threadIdx.x < COLUMNS && column < d ? load_one(residual, column, HALF) : 0.0f; // of row 0
    unsigned count = own;
    unsigned* which = (unsigned*)(own_h + ROWS * most);
    if (SKIPS) {
        // A span's lines that take part move to the front, in their order.
        count = 0;
        for (unsigned from = 0; from < own; from += THREADS) {
            const unsigned at = from + threadIdx.x;
            float mine[ROWS];
            bool asked = false;
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                mine[b] = at < own && b < rows ? h[b * lines + of(at)] : 0.0f;
                asked |= mine[b] != 0.0f;
            }
            const unsigned found = __ballot_sync(0xffffffffu, asked);
            if (lane == 0) of_warp[warp] = __popc(found);
            __syncthreads();
            unsigned to = count + __popc(found & ((1u << lane) - 1));
            for (int other = 0; other < THREADS / 32; other++) {
                if (other < warp) to += of_warp[other];
                count += of_warp[other];
            }
            if (asked) {
                which[to] = at;
#pragma unroll
                for (int b = 0; b < ROWS; b++) own_h[b * most + to] = mine[b];
            }
            __syncthreads();
        }
    } else {
        for (int b = 0; b < ROWS; b++) {
            for (unsigned at = threadIdx.x; at < own; at += THREADS) own_h[b * most + at] = b < rows ? h[b * lines + of(at)] : 0.0f;
        }
        __syncthreads();
    }
    float sum[ROWS][N];
#pragma unroll
    for (int b = 0; b < ROWS; b++) {
#pragma unroll
        for (int k = 0; k < N; k++) sum[b][k] = 0.0f;
    }
    for (unsigned from = 0; from < count; from += SLOTS * AHEAD) {
        if (SKIPS || from > 0) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned at = from + slot + SLOTS * a;
                const bool there = inside && at < count;
                ahead[a] = Values::read(w, there ? line(SKIPS ? which[at] : at) + chunk : 0, there);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const unsigned at = from + slot + SLOTS * a;
            if (at >= count) continue;
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                const float weight = own_h[b * most + at];
#pragma unroll
                for (int k = 0; k < N; k++) sum[b][k] += weight * ahead[a][k];
            }
        }
    }
    for (int b = 0; b < ROWS; b++) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            float both = sum[b][k];
#pragma unroll
            for (int apart = LANES; apart < 32; apart *= 2) both += __shfl_xor_sync(0xffffffffu, both, apart);
            if (lane < LANES) sums[warp][lane * N + k] = both;
        }
        __syncthreads();
        if (b < rows && threadIdx.x < COLUMNS && column < d) {
            float all = 0.0f;
            for (int other = 0; other < THREADS / 32; other++) all += sums[other][threadIdx.x];
            parts[(blockIdx.x * rows + b) * d + column] = all;
        }
        __syncthreads();
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived + blockIdx.y, 1) == spans - 1;
        if (last) arrived[blockIdx.y] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (unsigned at = threadIdx.x; at < rows * COLUMNS; at += THREADS) {
        const unsigned b = at / COLUMNS, j = blockIdx.y * COLUMNS + at % COLUMNS;
        if (j >= d) continue;
        float all = 0.0f;
#pragma unroll 8
        for (unsigned part = 0; part < spans; part++) all += __ldcg(parts + (part * rows + b) * d + j);
        all = as_stored(all, HALF);
        if (bias) all = as_stored(all + load_one(bias, j, HALF), HALF);
        if (residual) all += b == 0 ? before : load_one(residual, b * d + j, HALF);
        store_one(y, b * d + j, HALF, all);
    }
}

#define KERNEL(ROWS) extern "C" __global__ void __launch_bounds__(THREADS, ROWS == 1 ? 4 : 2)
#define OF_ROWS(ROWS)                                                                                                                                     \
    KERNEL(ROWS) weighted_rows_##ROWS(WEIGHTED) { weighted<ROWS, false>(h, w, residual, bias, parts, arrived, y, rows, lines, d); }                       \
    KERNEL(ROWS) few_weighted_rows_##ROWS(WEIGHTED) { weighted<ROWS, true>(h, w, residual, bias, parts, arrived, y, rows, lines, d); }

OF_ROWS(1)
OF_ROWS(2)
OF_ROWS(4)
OF_ROWS(8)
