// Causal grouped-query attention on tensor cores, forward and backward (attention.rs has the formula), after FlashAttention-2 (Dao, 2023).
//
// Layout: q, y, dy, dq [B, T, H, D], k, v, dk, dv [B, S, K, D], bf16, the keys of a sequence `room` positions apart; log_sums [B, H, T] f32,
// log Σ_j exp(q_i·k_j / √D). Query i has position S - T + i and sees the keys up to that position. Scores, probabilities and sums are f32;
// probabilities and their derivatives are rounded to bf16 where they enter a product.
//
//   forward        a block of threads takes QUERIES queries of a head and goes over the keys: S = Q Kᵀ, P = exp(S / √D - max), Y = P V / Σ P.
//   decode, merge  the same for few queries and many keys: blocks take a part of the keys each.
//   rows           log Σ · log2 e and Δ = Σ_d dY ⊙ Y of every query, side by side: what the next two need of a row.
//   dq             a block takes DQ_QUERIES queries of a head: dS = P ⊙ (dY Vᵀ - Δ), dQ = dS K / √D.
//   dkv            a block takes DKV_KEYS keys of a key head and goes over the queries of all heads that read it, on the transposes:
//                  dV = Pᵀ dY, dK = dSᵀ Q / √D.
//
// Scores are computed three times, and nothing is added by atomics: every value has one block and one order, so that runs are bit-equal.
// Products of two tiles leave their sums where the next product wants its left operand (a thread's part of the 16 × 8 sums of
// mma.m16n8k16 is that of a 16 × 16 left operand), so that probabilities never leave their registers.
//
// attention_kernel.rs compiles numbers.cu, tiles.cu, softmax.cu, this text and attention_backward.cu as one, with ROW_VALUES 64 and 128.

// --- Forward.

const int QUERIES = 128; // of a block: 32 of a warp
const int KEYS = 64;     // of a step
// Shared memory of a block, as attention_kernel.rs counts it:
// FORWARD_BYTES = (QUERIES + 2 * KEYS) * ROW

// As attention_kernel.rs hands it over, number by number.
struct Shape {
    int queries, keys, room, heads, kv_heads;
    float scale;

    __device__ int past() const { return keys - queries; }
};

extern "C" __global__ void __launch_bounds__(128, 2)
attention_forward(const u16* q, const u16* k, const u16* v, u16* y, float* log_sums, u64 queries, u64 keys, u64 room, u64 heads,
                  u64 kv_heads, float scale) {
    const Shape s = {(int)queries, (int)keys, (int)room, (int)heads, (int)kv_heads, scale};
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

// Shared memory of a block, as attention_kernel.rs counts it:
// DECODE_BYTES = (DECODE_ROWS + 4 * DECODE_KEYS) * ROW
// sums [B, H, T, parts, D] and stats [B, H, T, parts]: Σ exp(s - max) v, and max and Σ exp(s - max).
extern "C" __global__ void __launch_bounds__(128)
attention_decode(const u16* q, const u16* k, const u16* v, float* sums, float2* stats, u64 queries, u64 keys, u64 room, u64 heads, u64 kv_heads,
                 float scale, u64 span_of_part) {
    const Shape s = {(int)queries, (int)keys, (int)room, (int)heads, (int)kv_heads, scale};
    const int span = (int)span_of_part;
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
attention_merge(const float* sums, const float2* stats, u16* y, float* log_sums, u64 parts, u64 queries, u64 heads, float scale) {
    const u64 row = blockIdx.x, b = row / queries / heads, h = row / queries % heads, query = row % queries;
    float max = LOWEST, all = 0.0f, x = 0.0f;
    for (u64 part = 0; part < parts; part++) max = fmaxf(max, stats[row * parts + part].x);
    for (u64 part = 0; part < parts; part++) {
        const float2 of = stats[row * parts + part];
        const float share = power_of_two((of.x - max) * (scale * LOG2_E));
        all += share * of.y;
        x += share * sums[(row * parts + part) * D + threadIdx.x];
    }
    y[((b * queries + query) * heads + h) * D + threadIdx.x] = rounded(x / all);
    if (threadIdx.x == 0) log_sums[row] = max * scale + logf(all);
}
