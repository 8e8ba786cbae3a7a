// y = residual + Σ_i h_i W_i (+ b) of a few rows: sums of a matrix's lines by their weights, each line read once (gemv.rs has the formulas).
//
// Legend: b rows (ROWS at most), i lines of W [i, d], bf16 where KEPT_IN_BF16, else f32; h [b, i] f32; y [b, d]. Blocks: spans of lines, tiles of columns. Sixteen threads take the chunks of a
// tile, sixteen lines pass by at once. The block that comes last to a tile adds the sums of all spans, in their order.

const int THREADS = 256;
const int LANES = 16; // chunks of a tile
const int SLOTS = THREADS / LANES;
const bool HALF = KEPT_IN_BF16;
const int AHEAD = 8; // lines that a thread has under way

#define WEIGHTED const float *h, const void *w, const void *residual, const void *bias, float *parts, unsigned *arrived, void *y, u64 rows, u64 lines, u64 d, u64 skips

template <int ROWS>
__device__ void weighted(WEIGHTED) {
    typedef Chunk<HALF> Values;
    const int N = Values::N, COLUMNS = LANES * N;
    extern __shared__ float own_h[]; // [ROWS, lines of the span]
    __shared__ float sums[THREADS / 32][COLUMNS];
    __shared__ bool last;
    const unsigned span = (lines + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * span, end = min((unsigned)lines, begin + span);
    const unsigned chunks = d / N, chunk = blockIdx.y * LANES + threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const bool inside = chunk < chunks;
    Values ahead[AHEAD];
    let_the_next_launch_begin();
    // Who skips lines must know the weights first.
    if (!skips) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const unsigned i = begin + slot + SLOTS * a;
            ahead[a] = Values::read(w, (u64)i * chunks + chunk, inside && i < end);
        }
    }
    wait_for_the_launch_before();
    for (unsigned at = threadIdx.x; at < ROWS * span; at += THREADS) {
        const unsigned b = at / span, i = begin + at - b * span;
        own_h[at] = b < rows && i < end ? h[b * lines + i] : 0.0f;
    }
    __syncthreads();
    float sum[ROWS][N];
#pragma unroll
    for (int b = 0; b < ROWS; b++) {
#pragma unroll
        for (int k = 0; k < N; k++) sum[b][k] = 0.0f;
    }
    for (unsigned from = begin; from < end; from += SLOTS * AHEAD) {
        if (skips || from > begin) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned i = from + slot + SLOTS * a;
                bool asked = inside && i < end;
                if (asked && skips) {
                    asked = false;
                    for (int b = 0; b < ROWS; b++) asked |= own_h[b * span + i - begin] != 0.0f;
                }
                ahead[a] = Values::read(w, (u64)i * chunks + chunk, asked);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const unsigned i = from + slot + SLOTS * a;
            if (i >= end) continue;
#pragma unroll
            for (int b = 0; b < ROWS; b++) {
                const float weight = own_h[b * span + i - begin];
#pragma unroll
                for (int k = 0; k < N; k++) sum[b][k] += weight * ahead[a][k];
            }
        }
    }
    const unsigned column = blockIdx.y * COLUMNS + threadIdx.x;
    for (int b = 0; b < ROWS; b++) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float both = sum[b][k] + __shfl_xor_sync(0xffffffffu, sum[b][k], LANES);
            if (threadIdx.x % 32 < LANES) sums[threadIdx.x / 32][threadIdx.x % LANES * N + k] = both;
        }
        __syncthreads();
        if (b < rows && threadIdx.x < COLUMNS && column < d) {
            float own = 0.0f;
            for (int warp = 0; warp < THREADS / 32; warp++) own += sums[warp][threadIdx.x];
            parts[(blockIdx.x * rows + b) * d + column] = own;
        }
        __syncthreads();
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived + blockIdx.y, 1) == gridDim.x - 1;
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
        for (unsigned part = 0; part < gridDim.x; part++) all += __ldcg(parts + (part * rows + b) * d + j);
        all = as_stored(all, HALF);
        if (bias) all = as_stored(all + load_one(bias, j, HALF), HALF);
        if (residual) all += load_one(residual, b * d + j, HALF);
        store_one(y, b * d + j, HALF, all);
    }
}

#define OF_ROWS(ROWS)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) weighted_rows_##ROWS(WEIGHTED) {         \
        weighted<ROWS>(h, w, residual, bias, parts, arrived, y, rows, lines, d, skips);            \
    }

OF_ROWS(1)
OF_ROWS(2)
OF_ROWS(4)
OF_ROWS(8)
