// The backward of attention.cu on Hopper's warpgroups. dK and dV as there, on the transposes: a block takes 128 keys of a key head, 64 of
// each of two warpgroups, and goes over the queries of all heads that read it, 64 a step. It leaves dS, rounded to bf16, for dQ = dS K / √D:
// five products in place of seven, for 2 T (T + 64) bytes a head that are written once and read once.
//
// dS of 64 queries and 64 keys is a tile of left operands: [query / 16][key / 16][lane] of 16 bytes each, four registers of wgmma's left
// operand. Tiles of a head lie by query, then by key, as far as its queries see: those before query block i, where all keys before the
// first query take c blocks, are i (i + 1) / 2 + i c.

const int BLOCK = 64;             // queries of a step, queries and keys of a tile of dS
const u32 DS_TILE = 2 * 64 * 64;  // bytes
const int STATS = 2 * BLOCK;      // numbers of a block of queries: log Σ · log2 e, then Δ

__device__ int query_blocks(const Shape& s) { return (s.queries + BLOCK - 1) / BLOCK; }

// Blocks of keys that a block of queries sees, of those that there are and of one behind.
__device__ int blocks_seen(const Shape& s, int i) { return i + 1 + (s.past() + BLOCK - 1) / BLOCK; }

__device__ u64 tiles_before(const Shape& s, int i) { return (u64)i * (i + 1) / 2 + (u64)i * ((s.past() + BLOCK - 1) / BLOCK); }

const int ROWS_OF_THREAD = 4;

// Of every query, and zeros for those that fill up the last block: stats [B, H, blocks, 2, 64]. D / 8 threads a row; blockIdx.x is a block of
// queries of [B, blocks].
extern "C" __global__ void __launch_bounds__(256)
attention_rows_hopper(const uint4* y, const uint4* dy, const float* log_sums, float* stats, u64 batch, u64 queries, u64 heads) {
    const u32 count = (u32)heads, blocks = ((u32)queries + BLOCK - 1) / BLOCK, b = blockIdx.x / blocks, i = blockIdx.x % blocks;
    const u32 own = blockIdx.y * (ROWS_OF_THREAD * 256 / (D / 8)) + threadIdx.x / (D / 8);
    const u32 there = min((u32)queries - i * BLOCK, BLOCK) * count; // rows of [64, H]
    const u64 at = ((u64)b * queries + i * BLOCK) * heads * (D / 8) + threadIdx.x % (D / 8);
    uint4 of_y[ROWS_OF_THREAD], of_dy[ROWS_OF_THREAD];
#pragma unroll
    for (int r = 0; r < ROWS_OF_THREAD; r++) {
        const u32 row = own + r * (256 / (D / 8));
        of_y[r] = of_dy[r] = make_uint4(0, 0, 0, 0);
        if (row < there) of_y[r] = y[at + row * (D / 8)], of_dy[r] = dy[at + row * (D / 8)];
    }
#pragma unroll
    for (int r = 0; r < ROWS_OF_THREAD; r++) {
        const u32 row = own + r * (256 / (D / 8)), query = row / count, h = row % count;
        const u32 x[4] = {of_y[r].x, of_y[r].y, of_y[r].z, of_y[r].w}, z[4] = {of_dy[r].x, of_dy[r].y, of_dy[r].z, of_dy[r].w};
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < 4; e++) sum += widened(x[e]) * widened(z[e]) + widened(x[e] >> 16) * widened(z[e] >> 16);
#pragma unroll
        for (int lanes = D / 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (threadIdx.x % (D / 8) == 0 && row < BLOCK * count) {
            const u64 head = (u64)b * heads + h;
            float* to = stats + (head * blocks + i) * STATS + query;
            to[0] = row < there ? log_sums[head * queries + i * BLOCK + query] * LOG2_E : 0.0f;
            to[BLOCK] = sum;
        }
    }
}

const int DKV_KEYS = 128; // of a block
const int DKV_STAGES = 3;
const u32 STEP_TILE = BLOCK * ROW, DKV_STAGE = 2 * STEP_TILE, DKV_STAGES_AT = 2 * TILE, STATS_AT = DKV_STAGES_AT + DKV_STAGES * DKV_STAGE;
const u32 DKV_FULL = STATS_AT + DKV_STAGES * STATS * 4, DKV_EMPTY = DKV_FULL + 8 * DKV_STAGES, KV_FULL = DKV_EMPTY + 8 * DKV_STAGES;
// Shared memory of a block, as attention_hopper.rs counts it:
// DKV_BYTES = 2 * TILE + 3 * (2 * STEP_TILE + 512) + 56

// Key heads `from`, from + 1, ... of [B, K].
extern "C" __global__ void __launch_bounds__(384, 1)
attention_dkv_hopper(const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v, const __grid_constant__ Map dy,
                     const __grid_constant__ Map dk, const __grid_constant__ Map dv, const float* stats, uint4* ds_tiles, u64 from, u64 batch,
                     u64 queries, u64 keys, u64 heads, u64 kv_heads, float scale) {
    const Shape s = {(int)batch, (int)queries, (int)keys, (int)heads, (int)kv_heads, scale};
    const int group = s.heads / s.kv_heads, first = blockIdx.y * DKV_KEYS;
    const int b = (from + blockIdx.x) / s.kv_heads, kv = (from + blockIdx.x) % s.kv_heads;
    const int blocks = query_blocks(s), begin = max(0, first - s.past()) / BLOCK;
    const int warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        make_barrier(KV_FULL, 1);
        for (int i = 0; i < DKV_STAGES; i++) make_barrier(DKV_FULL + 8 * i, 1), make_barrier(DKV_EMPTY + 8 * i, 8);
        publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 2) {
        leave_registers<LOW>();
        if (threadIdx.x != 256) return;
        expect(KV_FULL, 2 * TILE);
        copy_tile<128>(0, k, kv, first, b, KV_FULL);
        copy_tile<128>(TILE, v, kv, first, b, KV_FULL);
        u32 stage = 0, free = 1;
        for (int h = kv * group; h < (kv + 1) * group; h++) {
            for (int i = begin; i < blocks; i++) {
                wait(DKV_EMPTY + 8 * stage, free);
                const u32 full = DKV_FULL + 8 * stage, to = DKV_STAGES_AT + stage * DKV_STAGE;
                expect(full, DKV_STAGE + STATS * 4);
                copy_tile<BLOCK>(to, q, h, i * BLOCK, b, full);
                copy_tile<BLOCK>(to + STEP_TILE, dy, h, i * BLOCK, b, full);
                copy_bytes(STATS_AT + stage * STATS * 4, stats + (((u64)b * s.heads + h) * blocks + i) * STATS, STATS * 4, full);
                if (++stage == DKV_STAGES) stage = 0, free ^= 1;
            }
        }
        return;
    }
    take_registers<HIGH>();
    const float scale2 = s.scale * LOG2_E;
    const int own = first + warpgroup * 64, warp = threadIdx.x % 128 / 32; // own: the warpgroup's first key
    const u64 k_own = operand(warpgroup * BOX), v_own = operand(TILE + warpgroup * BOX);
    float key_out[D / 8][4], value_out[D / 8][4], p[BLOCK / 8][4], ds[BLOCK / 8][4];
    const int steps = group * (blocks - begin), tile = own / BLOCK;
    const u64 head_tiles = tiles_before(s, blocks) * (DS_TILE / 16);
    ds_tiles += blockIdx.x * group * head_tiles + warp * 32 + lane();
    u32 stage = 0, full = 0;
    wait(KV_FULL, 0);
    int i = begin; // the step's block of queries
    for (int step = 0; step < steps; step++) {
        const int position = s.past() + i * BLOCK; // of the step's first query
        const u32 q_tile = DKV_STAGES_AT + stage * DKV_STAGE, dy_tile = q_tile + STEP_TILE;
        const float2* of_rows = (const float2*)((const unsigned char*)shared + STATS_AT + stage * STATS * 4) + lane() % 4;
        wait(DKV_FULL + 8 * stage, full);
        begin_products();
        begin_rows<128, BLOCK>(p, k_own, operand(q_tile));
        commit_products();
        begin_rows<128, BLOCK>(ds, v_own, operand(dy_tile));
        commit_products();
        wait_for_products<1>();
        settle(p);
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++) {
            const float2 of = of_rows[n * 4];
#pragma unroll
            for (int e = 0; e < 4; e++) p[n][e] = power_of_two(p[n][e] * scale2 - (e % 2 ? of.y : of.x));
        }
        if (own + 63 > position) {
#pragma unroll
            for (int e = 0; e < BLOCK / 2; e++) {
                if (own + warp * 16 + own_row(0, e % 4 / 2) > position + own_column(e / 4) + e % 2) p[e / 4][e % 4] = 0.0f;
            }
        }
        u32 left[BLOCK / 16][4], ds_left[BLOCK / 16][4];
        as_left(left, p);
        begin_products();
        begin_columns(value_out, left, operand(dy_tile, BLOCK * LINE), step > 0);
        commit_products();
        wait_for_products<1>();
        settle(ds);
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++) {
            const float2 of = of_rows[BLOCK / 2 + n * 4];
#pragma unroll
            for (int e = 0; e < 4; e++) ds[n][e] = p[n][e] * (ds[n][e] - (e % 2 ? of.y : of.x));
        }
        as_left(ds_left, ds);
        begin_products();
        begin_columns(key_out, ds_left, operand(q_tile, BLOCK * LINE), step > 0);
        commit_products();
        if (own < s.keys && tile < blocks_seen(s, i)) {
            uint4* to = ds_tiles + (tiles_before(s, i) + tile) * (DS_TILE / 16);
#pragma unroll
            for (int m = 0; m < BLOCK / 16; m++) {
                to[m * 128] = make_uint4(transposed(ds_left[m][0]), transposed(ds_left[m][2]), transposed(ds_left[m][1]), transposed(ds_left[m][3]));
            }
        }
        wait_for_products<0>();
        keep(left);
        keep(ds_left);
        if (lane() == 0) arrive(DKV_EMPTY + 8 * stage);
        if (++stage == DKV_STAGES) stage = 0, full ^= 1;
        if (++i == blocks) i = begin, ds_tiles += head_tiles;
    }
    settle(key_out);
    settle(value_out);
    const float scales[2] = {s.scale, s.scale}, ones[2] = {1.0f, 1.0f};
    store_sums(dk, kv, own, b, warpgroup * BOX, 128 * LINE, key_out, scales, 1 + warpgroup);
    store_sums(dv, kv, own, b, TILE + warpgroup * BOX, 128 * LINE, value_out, ones, 1 + warpgroup);
    if (threadIdx.x % 128 == 0) wait_for_stores();
}

const int DQ_GROUPS = 2; // warpgroups of a block, one a block of queries
const int DQ_STAGES = 3;
const u32 DQ_STAGE = STEP_TILE + DQ_GROUPS * DS_TILE;
const u32 DQ_FULL = DQ_STAGES * DQ_STAGE, DQ_EMPTY = DQ_FULL + 8 * DQ_STAGES;
// DQ_BYTES = 3 * (STEP_TILE + 2 * DS_TILE) + 48

// A block takes two blocks of queries, one of each warpgroup, and goes over the keys. Heads `from`, from + 1, ... of [B, H].
extern "C" __global__ void __launch_bounds__(128 * DQ_GROUPS, 4 / DQ_GROUPS)
attention_dq_hopper(const __grid_constant__ Map k, const __grid_constant__ Map dq, const unsigned char* ds_tiles, u64 from, u64 batch, u64 queries,
                    u64 keys, u64 heads, u64 kv_heads, float scale) {
    const Shape s = {(int)batch, (int)queries, (int)keys, (int)heads, (int)kv_heads, scale};
    const int b = (from + blockIdx.x) / s.heads, h = (from + blockIdx.x) % s.heads, kv = h / (s.heads / s.kv_heads);
    const int blocks = query_blocks(s), first = (gridDim.y - 1 - blockIdx.y) * DQ_GROUPS, warpgroup = threadIdx.x / 128;
    const int key_blocks = (s.keys + BLOCK - 1) / BLOCK, last = min(blocks, first + DQ_GROUPS) - 1;
    const int steps = min(key_blocks, blocks_seen(s, last)), own_seen = first + warpgroup > last ? 0 : blocks_seen(s, first + warpgroup);
    ds_tiles += (u64)blockIdx.x * tiles_before(s, blocks) * DS_TILE;
    // From the last keys on, whose dS was written last.
    const auto bring = [&](int step) {
        const int j = steps - 1 - step;
        const u32 full = DQ_FULL + 8 * (step % DQ_STAGES), to = step % DQ_STAGES * DQ_STAGE;
        // The last of the blocks sees all keys of these steps, one before it perhaps not.
        int unseen = 0;
        while (j >= blocks_seen(s, first + unseen)) unseen++;
        expect(full, STEP_TILE + (last - first + 1 - unseen) * DS_TILE);
        copy_tile<BLOCK>(to, k, kv, j * BLOCK, b, full);
        for (int i = first + unseen; i <= last; i++) {
            copy_bytes(to + STEP_TILE + (i - first) * DS_TILE, ds_tiles + (tiles_before(s, i) + j) * DS_TILE, DS_TILE, full);
        }
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < DQ_STAGES; i++) make_barrier(DQ_FULL + 8 * i, 1), make_barrier(DQ_EMPTY + 8 * i, 4 * DQ_GROUPS);
        publish_barriers();
        for (int step = 0; step < min(DQ_STAGES, steps); step++) bring(step);
    }
    __syncthreads();
    float out[D / 8][4];
    const int own = warpgroup * (DS_TILE / 16) + threadIdx.x % 128 / 32 * 128 + lane();
    for (int step = 0; step < steps; step++) {
        const u32 stage = step % DQ_STAGES;
        wait(DQ_FULL + 8 * stage, step / DQ_STAGES % 2);
        const uint4* from_tile = shared + (stage * DQ_STAGE + STEP_TILE) / 16 + own;
        u32 left[BLOCK / 16][4];
#pragma unroll
        for (int m = 0; m < BLOCK / 16; m++) {
            const uint4 x = steps - 1 - step < own_seen ? from_tile[m * 32] : make_uint4(0, 0, 0, 0);
            left[m][0] = x.x, left[m][1] = x.y, left[m][2] = x.z, left[m][3] = x.w;
        }
        begin_products();
        begin_columns(out, left, operand(stage * DQ_STAGE, BLOCK * LINE), step > 0);
        commit_products();
        wait_for_products<0>();
        keep(left);
        if (lane() == 0) arrive(DQ_EMPTY + 8 * stage);
        if (threadIdx.x == 0 && step + DQ_STAGES < steps) {
            // Until all warpgroups have read the step's tiles: others come in their place.
            wait(DQ_EMPTY + 8 * stage, step / DQ_STAGES % 2);
            bring(step + DQ_STAGES);
        }
    }
    settle(out);
    meet(1, 128 * DQ_GROUPS);
    const float scales[2] = {s.scale, s.scale};
    store_sums(dq, h, (first + warpgroup) * BLOCK, b, warpgroup * BOX, DQ_GROUPS * BOX, out, scales, 2 + warpgroup);
    if (threadIdx.x % 128 == 0) wait_for_stores();
}
