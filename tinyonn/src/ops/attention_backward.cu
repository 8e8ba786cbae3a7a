// The backward of attention.cu, whose first lines say what each kernel computes.

// A warp a row.
extern "C" __global__ void __launch_bounds__(256)
attention_rows(const u16* y, const u16* dy, const float* log_sums, float2* rows, u64 count, u64 queries, u64 heads) {
    const u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32; // of [B, T, H]
    if (row >= count) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const u64 at = row * (D / 2) + i * 32 + lane();
        const u32 a = ((const u32*)y)[at], b = ((const u32*)dy)[at];
        sum += widened(a) * widened(b) + widened(a >> 16) * widened(b >> 16);
    }
    sum = warp_sum(sum);
    const u64 h = row % heads, token = row / heads, to = (token / queries * heads + h) * queries + token % queries;
    if (lane() == 0) rows[to] = make_float2(log_sums[to] * LOG2_E, sum);
}

const int DQ_QUERIES = 128; // of a block: 32 of a warp
const int DQ_KEYS = 32;     // of a step
// Shared memory of a block, as attention_kernel.rs counts it:
// DQ_BYTES = (2 * DQ_QUERIES + 4 * DQ_KEYS) * ROW

extern "C" __global__ void __launch_bounds__(128, 2)
attention_dq(const u16* q, const u16* k, const u16* v, const u16* dy, const float2* rows, u16* dq, u64 queries,
             u64 keys, u64 room, u64 heads, u64 kv_heads, float scale) {
    const Shape s = {(int)queries, (int)keys, (int)room, (int)heads, (int)kv_heads, scale};
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

const int DKV_KEYS = 64;    // of a block: 16 of a warp
const int DKV_QUERIES = 64; // of a step
const u32 DKV_STAGE = 2 * DKV_QUERIES * ROW + DKV_QUERIES * 8;

// Shared memory of a block, as attention_kernel.rs counts it:
// DKV_BYTES = 2 * DKV_KEYS * ROW + 2 * DKV_STAGE
// A step's queries, their dy and their rows.
__device__ void load_queries(u32 stage, const u16* q, const u16* dy, const float2* rows, u64 stride, int first, int count) {
    load_tile<DKV_QUERIES, 128>(stage, q, stride, first, count);
    load_tile<DKV_QUERIES, 128>(stage + DKV_QUERIES * ROW, dy, stride, first, count);
    if (threadIdx.x < DKV_QUERIES) {
        const bool there = first + threadIdx.x < count;
        copy8(stage + 2 * DKV_QUERIES * ROW + threadIdx.x * 8, there ? rows + first + threadIdx.x : rows, there);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2)
attention_dkv(const u16* q, const u16* k, const u16* v, const u16* dy, const float2* rows, u16* dk, u16* dv, u64 queries,
              u64 keys, u64 room, u64 heads, u64 kv_heads, float scale) {
    const Shape s = {(int)queries, (int)keys, (int)room, (int)heads, (int)kv_heads, scale};
    const int first = blockIdx.y * DKV_KEYS, own = first + threadIdx.x / 32 * 16;
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

    float key_out[1][D / 8][4], value_out[1][D / 8][4];
    fill(key_out, 0.0f);
    fill(value_out, 0.0f);
    load_tile<DKV_KEYS, 128>(k_tile, k + k_head, k_stride, first, s.keys);
    load_tile<DKV_KEYS, 128>(v_tile, v + k_head, k_stride, first, s.keys);
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
            float p[1][DKV_QUERIES / 8][4], ds[1][DKV_QUERIES / 8][4];
            fill(p, 0.0f);
            multiply_rows<1, DKV_QUERIES / 8>(p, k_tile + own_rows, q_tile);
#pragma unroll
            for (int n = 0; n < DKV_QUERIES / 8; n++) {
                const float4 pair = pairs[own_column(n) / 2]; // log-sum and Δ of two queries
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    p[0][n][e] = power_of_two(p[0][n][e] * scale2 - (e % 2 ? pair.z : pair.x));
                    ds[0][n][e] = e % 2 ? -pair.w : -pair.y;
                }
            }
            if (own + 15 > position) {
#pragma unroll
                for (int i = 0; i < DKV_QUERIES / 8 * 4; i++) {
                    const int n = i / 4, e = i % 4;
                    if (own + own_row(0, e / 2) > position + own_column(n) + e % 2) p[0][n][e] = 0.0f;
                }
            }
            multiply_rows<1, DKV_QUERIES / 8>(ds, v_tile + own_rows, dy_tile);
            u32 left[1][DKV_QUERIES / 16][4];
            as_left<1, DKV_QUERIES / 8>(left, p);
            multiply_columns<1, DKV_QUERIES / 16>(value_out, left, dy_tile);
#pragma unroll
            for (int i = 0; i < DKV_QUERIES / 8 * 4; i++) ds[0][i / 4][i % 4] *= p[0][i / 4][i % 4];
            as_left<1, DKV_QUERIES / 8>(left, ds);
            multiply_columns<1, DKV_QUERIES / 16>(key_out, left, q_tile);
        }
        stage = next;
        query = next_query;
    }
    const float scales[1][2] = {{s.scale, s.scale}}, ones[1][2] = {{1.0f, 1.0f}};
    store_rows<1>(dk + k_head, k_stride, own, s.keys, k_tile + own_rows, key_out, scales);
    store_rows<1>(dv + k_head, k_stride, own, s.keys, v_tile + own_rows, value_out, ones);
}
