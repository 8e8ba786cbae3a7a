// Causal grouped-query attention on tensor cores, forward and backward (attention.rs has the formula), after FlashAttention-2 (Dao, 2023).
//
// Layout: q, y, dy, dq [B, T, H, D], k, v, dk, dv [B, S, K, D], bf16, the keys of a sequence `room` positions apart; log_sums [B, H, T] f32,
// log Σ_j exp(q_i·k_j / √D). Query i has position S - T + i and sees the keys up to that position. Scores, probabilities and sums are f32;
// probabilities and their derivatives are rounded to bf16 where they enter a product.
//
//   forward  a block of threads takes QUERIES queries of a head and goes over the keys: S = Q Kᵀ, P = exp(S / √D - max), Y = P V / Σ P.
//   decode, merge  the same for few queries and many keys: blocks take a part of the keys each.
//   rows     log Σ · log2 e and Δ = Σ_d dY ⊙ Y of every query, side by side: what the other two need of a row.
//   dq       a block takes DQ_QUERIES queries of a head: dS = P ⊙ (dY Vᵀ - Δ), dQ = dS K / √D.
//   dkv      a block takes DKV_KEYS keys of a key head and goes over the queries of all heads that read it, on the transposes:
//            dV = Pᵀ dY, dK = dSᵀ Q / √D.
//
// Scores are computed three times, and nothing is added by atomics: every value has one block and one order, so that runs are bit-equal.
// Products of two tiles leave their sums where the next product wants its left operand (a thread's part of the 16 × 8 sums of
// mma.m16n8k16 is that of a 16 × 16 left operand), so that probabilities never leave their registers.
//
// HEAD_DIM is 64 or 128: attention_kernel.rs compiles this text once for each.

typedef unsigned short u16; // The bits of a bf16.
typedef unsigned u32;
typedef unsigned long long u64;

const int D = HEAD_DIM;
const int CHUNKS = D / 8;     // of 16 bytes, a row
const u32 ROW = 2 * D;        // bytes
const float LOG2_E = 1.4426950408889634f;
// The score of a hidden key, far below LOWEST, which is below every other: exp(HIDDEN - LOWEST) is 0 where a query has seen nothing yet.
const float HIDDEN = -1e38f;
const float LOWEST = -1e30f;

// --- One instruction each.

extern __shared__ uint4 shared[];

__device__ u32 shared_address(u32 offset) { return (u32)__cvta_generic_to_shared(shared) + offset; }

// Sixteen bytes from global to shared memory, later: zeros unless `there`.
__device__ void copy16(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ void copy8(u32 to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 8 : 0) : "memory");
}

// Until this thread's copies are there.
__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 × 8 matrices, whose rows begin at the offsets that lanes 0 to 7, 8 to 15, ... name.
__device__ void load_matrices(u32 (&x)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(offset)) : "memory");
}

__device__ void load_transposes(u32 (&x)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(offset)) : "memory");
}

// c += a b, of 16 × 16 and 16 × 8 values.
__device__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values rounded to bf16, the first in the low half.
__device__ u32 packed(float low, float high) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

__device__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// --- Tiles: rows of D values in shared memory, named by the offset of their first byte.

// Where a chunk lies. Eight rows' chunks of one number lie in different banks.
__device__ u32 place(int row, int chunk) { return row * ROW + ((chunk ^ (row & 7)) << 4); }

__device__ int lane() { return threadIdx.x % 32; }

// Rows first, first + 1, ... of a head into a tile, by all threads; zeros from row `count` on.
template <int ROWS, int THREADS>
__device__ void load_tile(u32 tile, const u16* head, u64 stride, int first, int count) {
    const int STEP = THREADS / CHUNKS; // rows at once: a multiple of 8, so that all steps have one place in their rows
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const u16* from = head + (first + row) * stride + chunk * 8;
    const u32 to = tile + place(row, chunk);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const bool there = first + row + i * STEP < count;
        copy16(to + i * STEP * ROW, there ? from + i * STEP * stride : head, there);
    }
}

// c += A Bᵀ, of 16 M rows of one tile and 8 N rows of another.
template <int M, int N>
__device__ void multiply_rows(float (&c)[M][N][4], u32 a_tile, u32 b_tile) {
    const u32 a_lane = place(lane() % 16, lane() / 16);
    const u32 b_lane = place(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(a[m], a_tile + m * 16 * ROW + (a_lane ^ (k << 5)));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_matrices(b, b_tile + n * 8 * ROW + (b_lane ^ (k << 5)));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(c[m][n], a[m], b[0], b[1]);
                multiply(c[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// c += A B, of left operands and 16 K rows of a tile.
template <int M, int K>
__device__ void multiply_columns(float (&c)[M][D / 8][4], const u32 (&a)[M][K][4], u32 b_tile) {
    const u32 b_lane = place(lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 b[4];
            load_transposes(b, b_tile + k * 16 * ROW + (b_lane ^ (n << 4)));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(c[m][n], a[m][k], b[0], b[1]);
                multiply(c[m][n + 1], a[m][k], b[2], b[3]);
            }
        }
    }
}

// The sums of a product as left operands of the next.
template <int M, int N>
__device__ void as_left(u32 (&a)[M][N / 2][4], const float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            a[m][n / 2][n % 2 * 2] = packed(c[m][n][0], c[m][n][1]);
            a[m][n / 2][n % 2 * 2 + 1] = packed(c[m][n][2], c[m][n][3]);
        }
    }
}

// Of the four sums of a thread, c[0] and c[1] are of row lane / 4, c[2] and c[3] of the row 8 below, of columns 2 (lane % 4) and the next.
__device__ int own_row(int m, int half) { return m * 16 + half * 8 + lane() / 4; }
__device__ int own_column(int n) { return n * 8 + lane() % 4 * 2; }

template <int M, int N>
__device__ void fill(float (&c)[M][N][4], float x) {
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) c[i / 4 / N][i / 4 % N][i % 4] = x;
}

// Rows of sums, each times its scale, to rows first, first + 1, ... of a head, by a warp and through rows of a tile that are its own.
template <int M>
__device__ void store_rows(u16* head, u64 stride, int first, int count, u32 tile, const float (&c)[M][D / 8][4], const float (&scale)[M][2]) {
    unsigned char* bytes = (unsigned char*)shared;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 x = packed(c[m][n][2 * half] * scale[m][half], c[m][n][2 * half + 1] * scale[m][half]);
                *(u32*)(bytes + tile + place(own_row(m, half), n) + lane() % 4 * 4) = x;
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; i++) {
        const int row = (i * 32 + lane()) / CHUNKS, chunk = lane() % CHUNKS;
        if (first + row < count) *(uint4*)(head + (first + row) * stride + chunk * 8) = *(const uint4*)(bytes + tile + place(row, chunk));
    }
}

// --- Forward.

const int QUERIES = 128; // of a block: 32 of a warp
const int FORWARD_BLOCKS = 2; // of a multiprocessor
const int KEYS = 64;     // of a step
// FORWARD_BYTES = (QUERIES + 2 * KEYS) * ROW

struct Shape {
    int queries, keys, room, heads, kv_heads;
    float scale;

    __device__ int past() const { return keys - queries; }
};

extern "C" __global__ void __launch_bounds__(128, FORWARD_BLOCKS)
attention_forward(const u16* q, const u16* k, const u16* v, u16* y, float* log_sums, Shape s) {
    // The longest blocks come first.
    const int first = (gridDim.y - 1 - blockIdx.y) * QUERIES, own = first + threadIdx.x / 32 * 32;
    const int b = blockIdx.x / s.heads, h = blockIdx.x % s.heads, kv = h / (s.heads / s.kv_heads);
    const u64 q_stride = (u64)s.heads * D, k_stride = (u64)s.kv_heads * D;
    const u64 q_head = ((u64)b * s.queries * s.heads + h) * D, k_head = ((u64)b * s.room * s.kv_heads + kv) * D;
    const u32 q_tile = 0, k_tile = QUERIES * ROW, v_tile = k_tile + KEYS * ROW;
    const u32 q_own = q_tile + threadIdx.x / 32 * 32 * ROW;
    const int end = min(s.keys, s.past() + first + QUERIES);
    const float scale2 = s.scale * LOG2_E;

    float out[2][D / 8][4], most[2][2], sum[2][2];
    fill(out, 0.0f);
#pragma unroll
    for (int i = 0; i < 4; i++) most[i / 2][i % 2] = LOWEST, sum[i / 2][i % 2] = 0.0f;

    load_tile<QUERIES, 128>(q_tile, q + q_head, q_stride, first, s.queries);
    load_tile<KEYS, 128>(k_tile, k + k_head, k_stride, 0, s.keys);
    for (int key = 0; key < end; key += KEYS) {
        // The keys are there, and nobody reads the values before them any more.
        wait_for_copies();
        __syncthreads();
        load_tile<KEYS, 128>(v_tile, v + k_head, k_stride, key, s.keys);
        const int position = s.past() + own; // of the warp's first query
        const bool seen = key <= position + 31;
        float p[2][KEYS / 8][4];
        if (seen) {
            fill(p, 0.0f);
            multiply_rows<2, KEYS / 8>(p, q_own, k_tile);
        }
        wait_for_copies();
        __syncthreads();
        if (key + KEYS < end) load_tile<KEYS, 128>(k_tile, k + k_head, k_stride, key + KEYS, s.keys);
        if (!seen) continue;
        if (key + KEYS - 1 > position) {
#pragma unroll
            for (int i = 0; i < 2 * KEYS / 8 * 4; i++) {
                const int m = i / 4 / (KEYS / 8), n = i / 4 % (KEYS / 8), e = i % 4;
                if (key + own_column(n) + e % 2 > position + own_row(m, e / 2)) p[m][n][e] = HIDDEN;
            }
        }
        float shrink[2][2];
        bool moved = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int m = i / 2, half = i % 2;
            float max = most[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) max = fmaxf(max, fmaxf(p[m][n][2 * half], p[m][n][2 * half + 1]));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
            shrink[m][half] = power_of_two((most[m][half] - max) * scale2);
            moved |= max != most[m][half];
            most[m][half] = max;
            float own_sum = 0.0f;
            const float max2 = max * scale2;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) own_sum += p[m][n][e] = power_of_two(p[m][n][e] * scale2 - max2);
            }
            sum[m][half] = sum[m][half] * shrink[m][half] + own_sum;
        }
        // Where no maximum moved, all factors are 1.
        if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
            for (int i = 0; i < 2 * D / 8 * 4; i++) out[i / 4 / (D / 8)][i / 4 % (D / 8)][i % 4] *= shrink[i / 4 / (D / 8)][i % 4 / 2];
        }
        u32 left[2][KEYS / 16][4];
        as_left<2, KEYS / 8>(left, p);
        multiply_columns<2, KEYS / 16>(out, left, v_tile);
    }
    float inverse[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int m = i / 2, half = i % 2, query = own + own_row(m, half);
        float all = sum[m][half];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        inverse[m][half] = 1.0f / all;
        if (lane() % 4 == 0 && query < s.queries) {
            log_sums[(u64)blockIdx.x * s.queries + query] = most[m][half] * s.scale + logf(all);
        }
    }
    store_rows<2>(y + q_head, q_stride, own, s.queries, q_own, out, inverse);
}

// --- Decoding: few queries and many keys. All queries that read a key head stand in one tile of 16 rows, row r being head r % group of query
// r / group, and the keys are spread over `parts` blocks of `span` keys, whose sums are added up at the end.

const int DECODE_ROWS = 16;
const int DECODE_KEYS = 64; // of a step: 16 of a warp

// DECODE_BYTES = (DECODE_ROWS + 4 * DECODE_KEYS) * ROW
// sums [B, H, T, parts, D] and stats [B, H, T, parts]: Σ exp(s - max) v, and max and Σ exp(s - max).
extern "C" __global__ void __launch_bounds__(128)
attention_decode(const u16* q, const u16* k, const u16* v, float* sums, float2* stats, Shape s, int span) {
    const int b = blockIdx.x / s.kv_heads, kv = blockIdx.x % s.kv_heads, group = s.heads / s.kv_heads, rows = s.queries * group;
    const int warp = threadIdx.x / 32, begin = blockIdx.y * span, end = min(s.keys, begin + span);
    const u64 k_stride = (u64)s.kv_heads * D, k_head = ((u64)b * s.room * s.kv_heads + kv) * D;
    const u32 q_tile = 0, k_tiles = DECODE_ROWS * ROW, stage = 2 * DECODE_KEYS * ROW, own_rows = warp * 16 * ROW;
    const float scale2 = s.scale * LOG2_E;

    for (int at = threadIdx.x; at < DECODE_ROWS * CHUNKS; at += 128) {
        const int row = at / CHUNKS, chunk = at % CHUNKS;
        const u64 from = ((u64)(b * s.queries + row / group) * s.heads + kv * group + row % group) * D + chunk * 8;
        copy16(q_tile + place(row, chunk), row < rows ? q + from : q, row < rows);
    }
    load_tile<DECODE_KEYS, 128>(k_tiles, k + k_head, k_stride, begin, end);
    load_tile<DECODE_KEYS, 128>(k_tiles + stage / 2, v + k_head, k_stride, begin, end);
    float out[1][D / 8][4], most[2] = {LOWEST, LOWEST}, sum[2] = {0.0f, 0.0f};
    fill(out, 0.0f);
    u32 k_tile = k_tiles;
    for (int key = begin; key < end; key += DECODE_KEYS) {
        wait_for_copies();
        __syncthreads();
        const u32 next = k_tiles + (k_tile == k_tiles ? stage : 0);
        if (key + DECODE_KEYS < end) {
            load_tile<DECODE_KEYS, 128>(next, k + k_head, k_stride, key + DECODE_KEYS, end);
            load_tile<DECODE_KEYS, 128>(next + stage / 2, v + k_head, k_stride, key + DECODE_KEYS, end);
        }
        float p[1][2][4];
        fill(p, 0.0f);
        multiply_rows<1, 2>(p, q_tile, k_tile + own_rows);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int position = min(end - 1, s.past() + own_row(0, half) / group);
            float max = most[half];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& x = p[0][i / 2][2 * half + i % 2];
                if (key + warp * 16 + own_column(i / 2) + i % 2 > position) x = HIDDEN;
                max = fmaxf(max, x);
            }
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
            const float shrink = power_of_two((most[half] - max) * scale2);
            most[half] = max;
            sum[half] *= shrink;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& x = p[0][i / 2][2 * half + i % 2];
                sum[half] += x = power_of_two((x - max) * scale2);
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) out[0][n][2 * half] *= shrink, out[0][n][2 * half + 1] *= shrink;
        }
        u32 left[1][1][4];
        as_left<1, 2>(left, p);
        multiply_columns<1, 1>(out, left, k_tile + stage / 2 + own_rows);
        k_tile = next;
    }
    // The sums of the four warps, where the tiles were.
    __syncthreads();
    float* warp_sums = (float*)shared;
    float2* warp_stats = (float2*)(warp_sums + 4 * DECODE_ROWS * D);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp * DECODE_ROWS + own_row(0, half);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        if (lane() % 4 == 0) warp_stats[row] = make_float2(most[half], sum[half]);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            *(float2*)(warp_sums + row * D + own_column(n)) = make_float2(out[0][n][2 * half], out[0][n][2 * half + 1]);
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < rows * D; at += 128) {
        const int row = at / D, d = at % D;
        float max = LOWEST, all = 0.0f, x = 0.0f;
        for (int w = 0; w < 4; w++) max = fmaxf(max, warp_stats[w * DECODE_ROWS + row].x);
        for (int w = 0; w < 4; w++) {
            const float2 of = warp_stats[w * DECODE_ROWS + row];
            const float share = power_of_two((of.x - max) * scale2);
            all += share * of.y;
            x += share * warp_sums[(w * DECODE_ROWS + row) * D + d];
        }
        const u64 to = (((u64)b * s.heads + kv * group + row % group) * s.queries + row / group) * gridDim.y + blockIdx.y;
        sums[to * D + d] = x;
        if (d == 0) stats[to] = make_float2(max, all);
    }
}

// A block of D threads a row of [B, H, T].
extern "C" __global__ void __launch_bounds__(D)
attention_merge(const float* sums, const float2* stats, u16* y, float* log_sums, int parts, Shape s) {
    const u64 row = blockIdx.x;
    const int b = row / s.queries / s.heads, h = row / s.queries % s.heads, query = row % s.queries;
    float max = LOWEST, all = 0.0f, x = 0.0f;
    for (int part = 0; part < parts; part++) max = fmaxf(max, stats[row * parts + part].x);
    for (int part = 0; part < parts; part++) {
        const float2 of = stats[row * parts + part];
        const float share = power_of_two((of.x - max) * (s.scale * LOG2_E));
        all += share * of.y;
        x += share * sums[(row * parts + part) * D + threadIdx.x];
    }
    y[(((u64)b * s.queries + query) * s.heads + h) * D + threadIdx.x] = (u16)packed(x / all, 0.0f);
    if (threadIdx.x == 0) log_sums[row] = max * s.scale + logf(all);
}

// --- Backward.

// A warp a row.
extern "C" __global__ void __launch_bounds__(256)
attention_rows(const u16* y, const u16* dy, const float* log_sums, float2* rows, u64 count, int queries, int heads) {
    const u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32; // of [B, T, H]
    if (row >= count) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const u64 at = row * (D / 2) + i * 32 + lane();
        const u32 a = ((const u32*)y)[at], b = ((const u32*)dy)[at];
        sum += __uint_as_float(a << 16) * __uint_as_float(b << 16);
        sum += __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    const u64 h = row % heads, token = row / heads, to = (token / queries * heads + h) * queries + token % queries;
    if (lane() == 0) rows[to] = make_float2(log_sums[to] * LOG2_E, sum);
}

const int DQ_QUERIES = 128; // of a block: 32 of a warp
const int DQ_BLOCKS = 2; // of a multiprocessor
const int DQ_KEYS = 32;     // of a step
// DQ_BYTES = (2 * DQ_QUERIES + 4 * DQ_KEYS) * ROW

extern "C" __global__ void __launch_bounds__(128, DQ_BLOCKS)
attention_dq(const u16* q, const u16* k, const u16* v, const u16* dy, const float2* rows, u16* dq, Shape s) {
    const int first = (gridDim.y - 1 - blockIdx.y) * DQ_QUERIES, own = first + threadIdx.x / 32 * 32;
    const int b = blockIdx.x / s.heads, h = blockIdx.x % s.heads, kv = h / (s.heads / s.kv_heads);
    const u64 q_stride = (u64)s.heads * D, k_stride = (u64)s.kv_heads * D;
    const u64 q_head = ((u64)b * s.queries * s.heads + h) * D, k_head = ((u64)b * s.room * s.kv_heads + kv) * D;
    const u32 q_tile = 0, dy_tile = DQ_QUERIES * ROW, k_tiles = 2 * DQ_QUERIES * ROW, stage = 2 * DQ_KEYS * ROW;
    const u32 own_rows = threadIdx.x / 32 * 32 * ROW;
    const int end = min(s.keys, s.past() + first + DQ_QUERIES);
    const float scale2 = s.scale * LOG2_E;

    float out[2][D / 8][4];
    float2 row[2][2]; // of queries behind the last, zeros: their dy is zero too, and so their dS
    fill(out, 0.0f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int query = own + own_row(i / 2, i % 2);
        row[i / 2][i % 2] = query < s.queries ? rows[(u64)blockIdx.x * s.queries + query] : make_float2(0.0f, 0.0f);
    }
    load_tile<DQ_QUERIES, 128>(q_tile, q + q_head, q_stride, first, s.queries);
    load_tile<DQ_QUERIES, 128>(dy_tile, dy + q_head, q_stride, first, s.queries);
    load_tile<DQ_KEYS, 128>(k_tiles, k + k_head, k_stride, 0, s.keys);
    load_tile<DQ_KEYS, 128>(k_tiles + stage / 2, v + k_head, k_stride, 0, s.keys);
    u32 k_tile = k_tiles;
    for (int key = 0; key < end; key += DQ_KEYS) {
        // This step's tiles are there, and nobody reads those of the step before any more.
        wait_for_copies();
        __syncthreads();
        const u32 next = k_tiles + (k_tile == k_tiles ? stage : 0);
        if (key + DQ_KEYS < end) {
            load_tile<DQ_KEYS, 128>(next, k + k_head, k_stride, key + DQ_KEYS, s.keys);
            load_tile<DQ_KEYS, 128>(next + stage / 2, v + k_head, k_stride, key + DQ_KEYS, s.keys);
        }
        const int position = s.past() + own;
        if (key <= position + 31) {
            float p[2][DQ_KEYS / 8][4], ds[2][DQ_KEYS / 8][4];
            fill(p, 0.0f);
            multiply_rows<2, DQ_KEYS / 8>(p, q_tile + own_rows, k_tile);
#pragma unroll
            for (int i = 0; i < 2 * DQ_KEYS / 8 * 4; i++) {
                const int m = i / 4 / (DQ_KEYS / 8), n = i / 4 % (DQ_KEYS / 8), e = i % 4;
                ds[m][n][e] = -row[m][e / 2].y;
                p[m][n][e] = power_of_two(p[m][n][e] * scale2 - row[m][e / 2].x);
            }
            multiply_rows<2, DQ_KEYS / 8>(ds, dy_tile + own_rows, k_tile + stage / 2);
#pragma unroll
            for (int i = 0; i < 2 * DQ_KEYS / 8 * 4; i++) {
                const int m = i / 4 / (DQ_KEYS / 8), n = i / 4 % (DQ_KEYS / 8), e = i % 4;
                ds[m][n][e] *= p[m][n][e];
            }
            if (key + DQ_KEYS - 1 > position) {
#pragma unroll
                for (int i = 0; i < 2 * DQ_KEYS / 8 * 4; i++) {
                    const int m = i / 4 / (DQ_KEYS / 8), n = i / 4 % (DQ_KEYS / 8), e = i % 4;
                    if (key + own_column(n) + e % 2 > position + own_row(m, e / 2)) ds[m][n][e] = 0.0f;
                }
            }
            u32 left[2][DQ_KEYS / 16][4];
            as_left<2, DQ_KEYS / 8>(left, ds);
            multiply_columns<2, DQ_KEYS / 16>(out, left, k_tile);
        }
        k_tile = next;
    }
    const float scales[2][2] = {{s.scale, s.scale}, {s.scale, s.scale}};
    store_rows<2>(dq + q_head, q_stride, own, s.queries, q_tile + own_rows, out, scales);
}

const int DKV_KEYS = 64; // of a block
const int DKV_BLOCKS = 2; // of a multiprocessor
const int DKV_M = 1;     // sixteens of keys of a warp
const int DKV_QUERIES = 64; // of a step
const int DKV_THREADS = DKV_KEYS / DKV_M * 2;
const u32 DKV_STAGE = 2 * DKV_QUERIES * ROW + DKV_QUERIES * 8;

// DKV_BYTES = 2 * DKV_KEYS * ROW + 2 * DKV_STAGE
// A step's queries, their dy and their rows.
__device__ void load_queries(u32 stage, const u16* q, const u16* dy, const float2* rows, u64 stride, int first, int count) {
    load_tile<DKV_QUERIES, DKV_THREADS>(stage, q, stride, first, count);
    load_tile<DKV_QUERIES, DKV_THREADS>(stage + DKV_QUERIES * ROW, dy, stride, first, count);
    if (threadIdx.x < DKV_QUERIES) {
        const bool there = first + threadIdx.x < count;
        copy8(stage + 2 * DKV_QUERIES * ROW + threadIdx.x * 8, there ? rows + first + threadIdx.x : rows, there);
    }
}

extern "C" __global__ void __launch_bounds__(DKV_THREADS, DKV_BLOCKS)
attention_dkv(const u16* q, const u16* k, const u16* v, const u16* dy, const float2* rows, u16* dk, u16* dv, Shape s) {
    const int first = blockIdx.y * DKV_KEYS, own = first + threadIdx.x / 32 * 16 * DKV_M;
    const int b = blockIdx.x / s.kv_heads, kv = blockIdx.x % s.kv_heads, group = s.heads / s.kv_heads;
    const u64 q_stride = (u64)s.heads * D, k_stride = (u64)s.kv_heads * D;
    const u64 k_head = ((u64)b * s.room * s.kv_heads + kv) * D;
    const u64 head = (u64)b * s.heads + kv * group; // the first that reads these keys
    q += ((u64)b * s.queries * s.heads + kv * group) * D;
    dy += ((u64)b * s.queries * s.heads + kv * group) * D;
    rows += head * s.queries;
    const u32 k_tile = 0, v_tile = DKV_KEYS * ROW, stages = 2 * DKV_KEYS * ROW, own_rows = (own - first) * ROW;
    // The first query that sees a key of this block, rounded down to a step's first.
    const int begin = max(0, first - s.past()) / DKV_QUERIES * DKV_QUERIES;
    const int steps = (s.queries - begin + DKV_QUERIES - 1) / DKV_QUERIES; // a head
    const float scale2 = s.scale * LOG2_E;

    float key_out[DKV_M][D / 8][4], value_out[DKV_M][D / 8][4];
    fill(key_out, 0.0f);
    fill(value_out, 0.0f);
    load_tile<DKV_KEYS, DKV_THREADS>(k_tile, k + k_head, k_stride, first, s.keys);
    load_tile<DKV_KEYS, DKV_THREADS>(v_tile, v + k_head, k_stride, first, s.keys);
    load_queries(stages, q, dy, rows, q_stride, begin, s.queries);
    u32 stage = stages;
    int query = begin;
    for (int left_over = steps * group; left_over > 0; left_over--) {
        wait_for_copies();
        __syncthreads();
        const u32 next = stages + (stage == stages ? DKV_STAGE : 0);
        int next_query = query + DKV_QUERIES;
        if (next_query >= s.queries) {
            // On to the next head of the group.
            next_query = begin;
            q += D, dy += D, rows += s.queries;
        }
        if (left_over > 1) load_queries(next, q, dy, rows, q_stride, next_query, s.queries);
        const int position = s.past() + query; // of the step's first query
        if (own <= position + DKV_QUERIES - 1) {
            const u32 q_tile = stage, dy_tile = stage + DKV_QUERIES * ROW;
            const float4* pairs = (const float4*)((unsigned char*)shared + stage + 2 * DKV_QUERIES * ROW);
            float p[DKV_M][DKV_QUERIES / 8][4], ds[DKV_M][DKV_QUERIES / 8][4];
            fill(p, 0.0f);
            multiply_rows<DKV_M, DKV_QUERIES / 8>(p, k_tile + own_rows, q_tile);
#pragma unroll
            for (int n = 0; n < DKV_QUERIES / 8; n++) {
                const float4 pair = pairs[own_column(n) / 2]; // log-sum and Δ of two queries
#pragma unroll
                for (int i = 0; i < 4 * DKV_M; i++) {
                    const int m = i / 4, e = i % 4;
                    p[m][n][e] = power_of_two(p[m][n][e] * scale2 - (e % 2 ? pair.z : pair.x));
                    ds[m][n][e] = e % 2 ? -pair.w : -pair.y;
                }
            }
            if (own + 16 * DKV_M - 1 > position) {
#pragma unroll
                for (int i = 0; i < DKV_M * DKV_QUERIES / 8 * 4; i++) {
                    const int m = i / 4 / (DKV_QUERIES / 8), n = i / 4 % (DKV_QUERIES / 8), e = i % 4;
                    if (own + own_row(m, e / 2) > position + own_column(n) + e % 2) p[m][n][e] = 0.0f;
                }
            }
            multiply_rows<DKV_M, DKV_QUERIES / 8>(ds, v_tile + own_rows, dy_tile);
            u32 left[DKV_M][DKV_QUERIES / 16][4];
            as_left<DKV_M, DKV_QUERIES / 8>(left, p);
            multiply_columns<DKV_M, DKV_QUERIES / 16>(value_out, left, dy_tile);
#pragma unroll
            for (int i = 0; i < DKV_M * DKV_QUERIES / 8 * 4; i++) {
                const int m = i / 4 / (DKV_QUERIES / 8), n = i / 4 % (DKV_QUERIES / 8);
                ds[m][n][i % 4] *= p[m][n][i % 4];
            }
            as_left<DKV_M, DKV_QUERIES / 8>(left, ds);
            multiply_columns<DKV_M, DKV_QUERIES / 16>(key_out, left, q_tile);
        }
        stage = next;
        query = next_query;
    }
    float scales[DKV_M][2], ones[DKV_M][2];
#pragma unroll
    for (int i = 0; i < 2 * DKV_M; i++) scales[i / 2][i % 2] = s.scale, ones[i / 2][i % 2] = 1.0f;
    store_rows<DKV_M>(dk + k_head, k_stride, own, s.keys, k_tile + own_rows, key_out, scales);
    store_rows<DKV_M>(dv + k_head, k_stride, own, s.keys, v_tile + own_rows, value_out, ones);
}
