// The forward of attention.cu on Hopper's warpgroups, after FlashAttention-3 (Shah et al., 2024): 128 queries of a head a tile of work,
// 64 of each of two warpgroups, over steps of 128 keys; a third warpgroup brings the tiles. While the tensor cores form the scores of a step,
// and Y += P V of the step before, the other warpgroup has its exponentials.
//
// Blocks stay on their multiprocessor and take tiles of work in a fixed order, the longest first, so that the next one's keys are under way
// while the last one's sums are written.

const int QUERIES = 128; // of a tile of work
const int KEYS = 128;    // of a step
const int HIGH = 240, LOW = 24; // registers of a thread that multiplies, and of one that copies

// As attention_hopper.rs hands it over, number by number.
struct Shape {
    int batch, queries, keys, heads, kv_heads;
    float scale;

    __device__ int past() const { return keys - queries; }
};

// Shared memory of a block, as attention_hopper.rs counts it, with two steps' keys and values:
const u32 TILE = 128 * ROW;
const u32 Y_TILE = TILE, K_TILES = 2 * TILE, V_TILES = 4 * TILE, BARRIERS = 6 * TILE;
// FORWARD_BYTES = 6 * TILE + 80
const u32 Q_FULL = BARRIERS, Q_EMPTY = BARRIERS + 8, K_FULL = BARRIERS + 16, K_EMPTY = BARRIERS + 32, V_FULL = BARRIERS + 48, V_EMPTY = BARRIERS + 64;

// The tile of work that a block takes in a round. Every other round goes backwards, so that each block has as much to do.
struct Work {
    int batch, head, first, steps;

    __device__ Work(const Shape& s, int number) {
        const int rows = s.batch * s.heads, tiles = (s.queries + QUERIES - 1) / QUERIES;
        first = (tiles - 1 - number / rows) * QUERIES;
        batch = number % rows / s.heads, head = number % rows % s.heads;
        steps = (min(s.keys, s.past() + first + QUERIES) + KEYS - 1) / KEYS;
    }
};

__device__ int work_of_round(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(384, 1)
attention_forward_hopper(const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v, const __grid_constant__ Map y,
                         float* log_sums, u64 batch, u64 queries, u64 keys, u64 heads, u64 kv_heads, float scale) {
    const Shape s = {(int)batch, (int)queries, (int)keys, (int)heads, (int)kv_heads, scale};
    const int all = s.batch * s.heads * ((s.queries + QUERIES - 1) / QUERIES), group = s.heads / s.kv_heads;
    const int warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        make_barrier(Q_FULL, 1), make_barrier(Q_EMPTY, 8);
        for (int i = 0; i < 2; i++) {
            make_barrier(K_FULL + 8 * i, 1), make_barrier(K_EMPTY + 8 * i, 8);
            make_barrier(V_FULL + 8 * i, 1), make_barrier(V_EMPTY + 8 * i, 8);
        }
        publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 2) {
        leave_registers<LOW>();
        if (threadIdx.x != 256) return;
        u32 n = 0; // steps so far
        for (int round = 0, number; (number = work_of_round(round)) < all; round++) {
            const Work work(s, number);
            const int kv = work.head / group;
            for (int step = work.steps - 1; step >= 0; step--, n++) {
                const u32 stage = n % 2, free = n / 2 % 2 ^ 1;
                wait(K_EMPTY + 8 * stage, free);
                expect(K_FULL + 8 * stage, TILE);
                copy_tile<128>(K_TILES + stage * TILE, k, kv, step * KEYS, work.batch, K_FULL + 8 * stage);
                if (step == work.steps - 1) {
                    wait(Q_EMPTY, round % 2 ^ 1);
                    expect(Q_FULL, TILE);
                    copy_tile<128>(0, q, work.head, work.first, work.batch, Q_FULL);
                }
                wait(V_EMPTY + 8 * stage, free);
                expect(V_FULL + 8 * stage, TILE);
                copy_tile<128>(V_TILES + stage * TILE, v, kv, step * KEYS, work.batch, V_FULL + 8 * stage);
            }
        }
        return;
    }
    take_registers<HIGH>();
    const float scale2 = s.scale * LOG2_E;
    const u64 q_own = operand(warpgroup * BOX), k_first = operand(K_TILES), v_first = operand(V_TILES, 128 * LINE);
    const int own_line = threadIdx.x % 128 / 32 * 16;
    // The warpgroups take turns at the tensor cores, the first one first.
    if (warpgroup == 1) pass(1, 256);
    u32 n = 0; // steps so far
    for (int round = 0, number; (number = work_of_round(round)) < all; round++) {
        const Work work(s, number);
        const int own = work.first + warpgroup * 64, position = s.past() + own; // of the warpgroup's first query
        float out[D / 8][4], p[KEYS / 8][4], most[2] = {LOWEST, LOWEST}, sum[2] = {0.0f, 0.0f}, shrink[2];
        u32 left[KEYS / 16][4];
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i / 4][i % 4] = 0.0f;

        const auto soften = [&](int key) {
            if (key + KEYS - 1 > position) {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) {
                    const int column = key + own_column(i / 4) + i % 2, row = position + own_line + own_row(0, i % 4 / 2);
                    if (column > row) p[i / 4][i % 4] = HIDDEN;
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float max = most[half];
#pragma unroll
                for (int i = 0; i < KEYS / 8; i++) max = fmaxf(max, fmaxf(p[i][2 * half], p[i][2 * half + 1]));
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
                shrink[half] = power_of_two((most[half] - max) * scale2);
                most[half] = max;
                float own_sum = 0.0f;
                const float max2 = max * scale2;
#pragma unroll
                for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) own_sum += p[i][e] = power_of_two(p[i][e] * scale2 - max2);
                }
                sum[half] = sum[half] * shrink[half] + own_sum;
            }
        };

        wait(Q_FULL, round % 2);
        wait(K_FULL + 8 * (n % 2), n / 2 % 2);
        begin_products();
        begin_rows<128, 128>(p, q_own, k_first + n % 2 * (TILE / 16));
        commit_products();
        wait_for_products<0>();
        settle(p);
        if (lane() == 0) arrive(K_EMPTY + 8 * (n % 2));
        if (lane() == 0 && work.steps == 1) arrive(Q_EMPTY);
        soften((work.steps - 1) * KEYS);
        as_left(left, p);
        for (int step = work.steps - 2; step >= 0; step--, n++) {
            const u32 stage = n % 2, next = stage ^ 1;
            wait(K_FULL + 8 * next, (n + 1) / 2 % 2);
            meet(1 + warpgroup, 256);
            begin_products();
            begin_rows<128, 128>(p, q_own, k_first + next * (TILE / 16));
            commit_products();
            wait(V_FULL + 8 * stage, n / 2 % 2);
            begin_products();
            begin_columns(out, left, v_first + stage * (TILE / 16), true);
            commit_products();
            pass(2 - warpgroup, 256);
            wait_for_products<1>();
            settle(p);
            if (lane() == 0) arrive(K_EMPTY + 8 * next);
            if (lane() == 0 && step == 0) arrive(Q_EMPTY);
            soften(step * KEYS);
            wait_for_products<0>();
            settle(out);
            keep(left);
            if (lane() == 0) arrive(V_EMPTY + 8 * stage);
#pragma unroll
            for (int i = 0; i < D / 2; i++) out[i / 4][i % 4] *= shrink[i % 4 / 2];
            as_left(left, p);
        }
        wait(V_FULL + 8 * (n % 2), n / 2 % 2);
        begin_products();
        begin_columns(out, left, v_first + n % 2 * (TILE / 16), true);
        commit_products();
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float whole = sum[half];
            whole += __shfl_xor_sync(0xffffffffu, whole, 1);
            whole += __shfl_xor_sync(0xffffffffu, whole, 2);
            inverse[half] = 1.0f / whole;
            const int query = own + own_line + own_row(0, half);
            if (lane() % 4 == 0 && query < s.queries) {
                log_sums[((u64)work.batch * s.heads + work.head) * s.queries + query] = most[half] * s.scale + logf(whole);
            }
        }
        // The sums of the tile of work before have left their place.
        if (threadIdx.x % 128 == 0) wait_for_stores();
        meet(3 + warpgroup, 128);
        wait_for_products<0>();
        settle(out);
        keep(left);
        if (lane() == 0) arrive(V_EMPTY + 8 * (n % 2));
        n++;
        store_sums(y, work.head, own, work.batch, Y_TILE + warpgroup * BOX, 128 * LINE, out, inverse, 3 + warpgroup);
    }
    if (threadIdx.x % 128 == 0) wait_for_stores();
}
