// The gated MLP over rows sorted by expert, forward and backward, on tensor cores (dispatch_mlp.rs has the formulas).
//
// Legend: t tokens, d hidden, r rows (expert_rows.cu), a tile TILE_ROWS of them of one expert; an expert's neurons in slabs of 64, the last filled
// up with zeros; `width` the slabs of the widest expert. Weights are [I, d], a row a neuron, in the model's order: an expert's rows are found by
// `neurons`, its from `neuron_starts[e]` on. Values of rows, g, u, h and their derivatives, are [r, width], bf16.
//
//   expert_up        g = W_g x, u = W_u x, h = w silu(g) u.
//   expert_product   y[r] = Σ_i v[r, i] W[i] of one (v, W), or the sum of two: h W_d, and δ_g W_g + δ_u W_u.
//   expert_combine   y[t] = the sum of its rows, in the experts' order.
//   expert_deltas    δ_h = W_d dy, δ_g, δ_u, and Σ_i δ_h silu(g) u, of which the gates' gradients are made.
//   expert_weights   dW[i] = Σ_r v[r, i] a[token of r]: dW_g and dW_u of δ_g, δ_u and x; dW_d of h and dy.
//
// Every value is the sum of one thread in one order.

const int TILE = TILE_ROWS * ROW; // bytes
const int SLAB = 64 * ROW;

// The tile of a block: rows first to end of an expert, and the neurons of a slab of it.
struct Work {
    u32 expert, first, end, neuron, neurons;

    __device__ Work(const u32* tiles, const u32* starts, const u32* neuron_starts, u32 tile, u32 slab) {
        expert = tiles[2 * tile];
        if (expert == NOBODY) return;
        first = tiles[2 * tile + 1];
        end = min(first + TILE_ROWS, starts[expert + 1]);
        neuron = neuron_starts[expert] + slab * 64;
        const u32 last = neuron_starts[expert + 1];
        neurons = last > neuron ? min(64u, last - neuron) : 0;
    }
};

// --- Products over d, of gathered rows and an expert's neurons: a ring of STAGES steps of 64 values of each.

// What a thread copies of N · 32 rows: chunk threadIdx.x % 8 of rows threadIdx.x / 8, + 32, ...
template <int N>
struct Rows {
    const u16* from[N];
    u32 there;

    __device__ void copy(u32 tile, int k) const {
        const u32 to = tile + place(threadIdx.x / 8, threadIdx.x % 8);
#pragma unroll
        for (int i = 0; i < N; i++) copy16(to + i * 32 * ROW, from[i] + k, there >> i & 1);
    }
};

// c += A Bᵀ over d, of a warp's 32 rows of the first and 8 N of the second.
template <int STAGES, int N, int B_ROWS>
__device__ void over_hidden(float (&c)[2][N][4], const Rows<4>& a, const Rows<B_ROWS / 32>& b, int d, u32 a_own, u32 b_own) {
    const u32 stage = TILE + B_ROWS * ROW;
    const int steps = d / 64;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) a.copy(i * stage, i * 64), b.copy(i * stage + TILE, i * 64);
        commit_copies();
    }
    for (int step = 0, at = 0, next = STAGES - 1; step < steps; step++) {
        wait_for_groups<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            a.copy(next * stage, (step + STAGES - 1) * 64);
            b.copy(next * stage + TILE, (step + STAGES - 1) * 64);
        }
        commit_copies();
        multiply_rows<2, N>(c, at * stage + a_own, at * stage + TILE + b_own);
        at = at + 1 == STAGES ? 0 : at + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
}

// The rows of x that a tile reads, through their tokens.
__device__ Rows<4> gathered(const u16* x, const u32* tokens, const Work& work, u64 d) {
    Rows<4> rows;
    rows.there = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = work.first + threadIdx.x / 8 + i * 32;
        const bool there = row < work.end;
        rows.there |= there << i;
        rows.from[i] = x + (there ? tokens[row] * d : 0) + threadIdx.x % 8 * 8;
    }
    return rows;
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

__device__ void store_pair(u16* to, float low, float high) { *(u32*)to = packed(low, high); }

const int UP_STAGES = 3;
// UP_BYTES = UP_STAGES * (TILE + 2 * SLAB)

extern "C" __global__ void __launch_bounds__(256, 2)
expert_up(const u16* x, const u16* w_gate, const u16* w_up, const u32* neurons, const u32* neuron_starts, const u32* tiles, const u32* starts,
          const u32* tokens, const float* gates, u16* g, u16* u, u16* h, u64 d, u64 width) {
    const Work work(tiles, starts, neuron_starts, blockIdx.x, blockIdx.y);
    if (work.expert == NOBODY) return;
    // Eight rows of W_g, the same eight of W_u, and so on: g and u of a neuron meet in one thread.
    Rows<4> weights;
    weights.there = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = threadIdx.x / 8 + i * 32, own = row / 16 * 8 + row % 8;
        const bool there = own < work.neurons;
        weights.there |= there << i;
        weights.from[i] = (row % 16 < 8 ? w_gate : w_up) + (there ? neurons[work.neuron + own] * d : 0) + threadIdx.x % 8 * 8;
    }
    const int warp = threadIdx.x / 32, m = warp / 2 * 32, n = warp % 2 * 64;
    float c[2][8][4];
    fill(c, 0.0f);
    over_hidden<UP_STAGES, 8, 128>(c, gathered(x, tokens, work, d), weights, d, m * ROW, n * ROW);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int half = i % 2, row = work.first + m + own_row(i / 2, half);
        if (row >= work.end) continue;
        const float w = gates[row];
        const u64 at = row * width + blockIdx.y * 64 + n / 2;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const u32 gs = packed(c[i / 2][2 * pair][2 * half], c[i / 2][2 * pair][2 * half + 1]);
            const u32 us = packed(c[i / 2][2 * pair + 1][2 * half], c[i / 2][2 * pair + 1][2 * half + 1]);
            const u64 to = at + own_column(pair);
            *(u32*)(g + to) = gs;
            *(u32*)(u + to) = us;
            store_pair(h + to, low(gs) * sigmoid(low(gs)) * low(us) * w, high(gs) * sigmoid(high(gs)) * high(us) * w);
        }
    }
}

const int DELTA_STAGES = 4;
// DELTA_BYTES = DELTA_STAGES * (TILE + SLAB)

// parts [2 · slabs, r]: what the two halves of every slab add to Σ_i δ_h silu(g) u.
extern "C" __global__ void __launch_bounds__(256, 2)
expert_deltas(const u16* dy, const u16* w_down, const u32* neurons, const u32* neuron_starts, const u32* tiles, const u32* starts, const u32* tokens,
              const float* gates, const u16* g, const u16* u, u16* dh, u16* dg, u16* du, float* parts, u64 d, u64 width, u64 room) {
    const Work work(tiles, starts, neuron_starts, blockIdx.x, blockIdx.y);
    if (work.expert == NOBODY) return;
    Rows<2> weights;
    weights.there = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 own = threadIdx.x / 8 + i * 32;
        const bool there = own < work.neurons;
        weights.there |= there << i;
        weights.from[i] = w_down + (there ? neurons[work.neuron + own] * d : 0) + threadIdx.x % 8 * 8;
    }
    const int warp = threadIdx.x / 32, m = warp / 2 * 32, n = warp % 2 * 32;
    float c[2][4][4];
    fill(c, 0.0f);
    over_hidden<DELTA_STAGES, 4, 64>(c, gathered(dy, tokens, work, d), weights, d, m * ROW, n * ROW);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int half = i % 2, row = work.first + m + own_row(i / 2, half);
        float sum = 0.0f;
        if (row < work.end) {
            const float w = gates[row];
            const u64 at = row * width + blockIdx.y * 64 + n;
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                const u64 to = at + own_column(pair);
                const u32 gs = *(const u32*)(g + to), us = *(const u32*)(u + to);
                float of_h[2], of_g[2], of_u[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float gate = e ? high(gs) : low(gs), up = e ? high(us) : low(us);
                    const float s = sigmoid(gate), delta = c[i / 2][pair][2 * half + e], q = delta * w;
                    sum += delta * gate * s * up;
                    of_h[e] = delta;
                    of_g[e] = q * up * s * (1.0f + gate * (1.0f - s));
                    of_u[e] = q * gate * s;
                }
                store_pair(dh + to, of_h[0], of_h[1]);
                store_pair(dg + to, of_g[0], of_g[1]);
                store_pair(du + to, of_u[0], of_u[1]);
            }
        }
        // The four lanes of a row.
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane() % 4 == 0 && row < work.end) parts[(blockIdx.y * 2 + warp % 2) * room + row] = sum;
    }
}

// --- Products over neurons.

// PRODUCT_BYTES = 2 * (TILE + 2 * SLAB)

// What a thread copies of step `step`: of 128 rows of v, and of 64 neurons' 128 columns of W from `column` on.
__device__ void copy_step(u32 stage, const u16* v, const u16* w, int slab, const u32* neurons, const u32* neuron_starts, const Work& work, u32 column,
                          u64 d, u64 width) {
    const bool both = column + 64 < d; // the last 128 columns may be 64
    const int chunk = threadIdx.x % 8;
    const u32 to = stage + place(threadIdx.x / 8, chunk);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = work.first + threadIdx.x / 8 + i * 32;
        const bool there = row < work.end;
        copy16(to + i * 32 * ROW, v + (there ? row * width + slab * 64 : 0) + chunk * 8, there);
    }
    const u32 first = neuron_starts[work.expert] + slab * 64, last = neuron_starts[work.expert + 1];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 neuron = first + threadIdx.x / 8 + i * 32;
        const bool there = neuron < last;
        const u16* from = w + (there ? neurons[neuron] * d : 0) + column + chunk * 8;
        copy16(to + TILE + i * 32 * ROW, from, there);
        copy16(to + TILE + SLAB + i * 32 * ROW, both ? from + 64 : from, there && both);
    }
}

// `count` pairs of v and W: one, or two.
extern "C" __global__ void __launch_bounds__(256, 2)
expert_product(const u16* v0, const u16* v1, const u16* w0, const u16* w1, const u32* neurons, const u32* neuron_starts, const u32* tiles,
               const u32* starts, u16* y, u64 count, u64 d, u64 width) {
    const Work work(tiles, starts, neuron_starts, blockIdx.y, 0);
    if (work.expert == NOBODY) return;
    const u32 column = blockIdx.x * 128, stage = TILE + 2 * SLAB;
    const int slabs = (neuron_starts[work.expert + 1] - neuron_starts[work.expert] + 63) / 64, steps = count * slabs;
    const int warp = threadIdx.x / 32, m = warp / 2 * 32, side = warp % 2;
    float c[2][8][4];
    fill(c, 0.0f);
    copy_step(0, v0, w0, 0, neurons, neuron_starts, work, column, d, width);
    for (int step = 0; step < steps; step++) {
        wait_for_copies();
        __syncthreads();
        if (const int next = step + 1; next < steps) {
            const bool second = next >= slabs;
            copy_step(next % 2 * stage, second ? v1 : v0, second ? w1 : w0, second ? next - slabs : next, neurons, neuron_starts, work, column, d, width);
        }
        const u32 at = step % 2 * stage, own = at + m * ROW, a_lane = place(lane() % 16, lane() / 16);
        u32 a[2][4][4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            load_matrices(a[0][k], own + (a_lane ^ (k << 5)));
            load_matrices(a[1][k], own + 16 * ROW + (a_lane ^ (k << 5)));
        }
        multiply_columns<2, 4>(c, a, at + TILE + side * SLAB);
        __syncthreads();
    }
    if (column + side * 64 >= d) return;
    const float ones[2][2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};
    // The tile of v is read no more; a warp takes 32 rows of 64 values of the ring's beginning.
    store_rows<2>(y + column + side * 64, d, work.first + m, work.end, warp * 32 * ROW, c, ones);
}

// A token a block, eight values a thread and step.
extern "C" __global__ void expert_combine(const u16* y, const u32* bits, const u32* rows_tk, u16* out, u64 words, u64 most, u64 d) {
    const u64 token = blockIdx.x;
    int count = 0;
    for (u32 word = 0; word < words; word++) count += __popc(bits[token * words + word]);
    for (u64 at = threadIdx.x * 8; at < d; at += blockDim.x * 8) {
        float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (int i = 0; i < count; i++) {
            const uint4 eight = *(const uint4*)(y + rows_tk[token * most + i] * d + at);
            const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int pair = 0; pair < 4; pair++) sum[2 * pair] += low(pairs[pair]), sum[2 * pair + 1] += high(pairs[pair]);
        }
        *(uint4*)(out + token * d + at) =
            make_uint4(packed(sum[0], sum[1]), packed(sum[2], sum[3]), packed(sum[4], sum[5]), packed(sum[6], sum[7]));
    }
}

// --- Products over an expert's rows.

const int WEIGHT_STAGES = 3;
// WEIGHT_BYTES = WEIGHT_STAGES * 4 * SLAB

// 64 rows of v0 and v1 (the same, where `count` is one), and of the 128 columns of a, gathered, from `column` on.
__device__ void copy_rows(u32 stage, const u16* v0, const u16* v1, u32 count, const u16* a, const u32* tokens, u32 first, u32 end, u32 slab, u32 column,
                          u64 d, u64 width) {
    const bool both = column + 64 < d; // the last 128 columns may be 64
    const int chunk = threadIdx.x % 8;
    const u32 to = stage + place(threadIdx.x / 8, chunk);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 row = first + threadIdx.x / 8 + i * 32;
        const bool there = row < end;
        const u64 at = there ? row * width + slab * 64 : 0;
        copy16(to + i * 32 * ROW, v0 + at + chunk * 8, there);
        if (count == 2) copy16(to + SLAB + i * 32 * ROW, v1 + at + chunk * 8, there);
        const u16* from = a + (there ? tokens[row] * d : 0) + column + chunk * 8;
        copy16(to + 2 * SLAB + i * 32 * ROW, from, there);
        copy16(to + 3 * SLAB + i * 32 * ROW, both ? from + 64 : from, there && both);
    }
}

// 16 M rows and 64 columns a warp: with two v the first four warps take 128 columns of the first, the others those of the second.
template <int M>
__device__ void multiply_transposes(float (&c)[M][8][4], u32 v_tile, u32 v_chunk, u32 a_tile) {
    const u32 v_lane = place(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2), a_lane = place(lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        u32 v[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_transposes(v[m], v_tile + k * 16 * ROW + (v_lane ^ ((v_chunk + 2 * m) << 4)));
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            u32 b[4];
            load_transposes(b, a_tile + k * 16 * ROW + (a_lane ^ (n << 4)));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(c[m][n], v[m], b[0], b[1]);
                multiply(c[m][n + 1], v[m], b[2], b[3]);
            }
        }
    }
}

// The rows of an expert, by one block for 64 neurons of one or two matrices and 128 columns.
template <int M>
__device__ void weight_gradient(const u16* v0, const u16* v1, u32 count, const u16* a, const u32* neurons, const u32* neuron_starts, const u32* starts,
                                const u32* tokens, void* dw0, void* dw1, u64 d, u64 width, u64 half, u64 add) {
    const u32 slabs = width / 64, expert = blockIdx.y / slabs, slab = blockIdx.y % slabs, column = blockIdx.x * 128, stage = 4 * SLAB;
    const u32 neuron = neuron_starts[expert] + slab * 64, last = neuron_starts[expert + 1];
    if (neuron >= last) return;
    const u32 first = starts[expert], end = starts[expert + 1];
    const int steps = (end - first + 63) / 64, warp = threadIdx.x / 32;
    // 64 columns a warp; rows: with two matrices 32, four warps deep, with one 16.
    const int side = warp % 2, part = warp / 2 * 16 * M, which = part / 64, own = part % 64;
    float c[M][8][4];
    fill(c, 0.0f);
#pragma unroll
    for (int i = 0; i < WEIGHT_STAGES - 1; i++) {
        if (i < steps) copy_rows(i * stage, v0, v1, count, a, tokens, first + i * 64, end, slab, column, d, width);
        commit_copies();
    }
    for (int step = 0, at = 0, next = WEIGHT_STAGES - 1; step < steps; step++) {
        wait_for_groups<WEIGHT_STAGES - 2>();
        __syncthreads();
        if (step + WEIGHT_STAGES - 1 < steps) {
            copy_rows(next * stage, v0, v1, count, a, tokens, first + (step + WEIGHT_STAGES - 1) * 64, end, slab, column, d, width);
        }
        commit_copies();
        multiply_transposes<M>(c, at * stage + which * SLAB, own / 8, at * stage + (2 + side) * SLAB);
        at = at + 1 == WEIGHT_STAGES ? 0 : at + 1;
        next = next + 1 == WEIGHT_STAGES ? 0 : next + 1;
    }
    if (column + side * 64 >= d) return;
    void* dw = which ? dw1 : dw0;
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        const u32 row = neuron + own + own_row(i / 2, i % 2);
        if (row >= last) continue;
        const u64 to = neurons[row] * d + column + side * 64;
#pragma unroll
        for (int n = 0; n < 8; n++) put_pair(dw, to + own_column(n), half, add, c[i / 2][n][2 * (i % 2)], c[i / 2][n][2 * (i % 2) + 1]);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
expert_weights_2(const u16* v0, const u16* v1, const u16* a, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens,
                 void* dw0, void* dw1, u64 d, u64 width, u64 half, u64 add) {
    weight_gradient<2>(v0, v1, 2, a, neurons, neuron_starts, starts, tokens, dw0, dw1, d, width, half, add);
}

extern "C" __global__ void __launch_bounds__(256, 2)
expert_weights_1(const u16* v, const u16* a, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens, void* dw, u64 d,
                 u64 width, u64 half, u64 add) {
    weight_gradient<1>(v, v, 1, a, neurons, neuron_starts, starts, tokens, dw, dw, d, width, half, add);
}

// --- From rows to tokens.

// w's gradient [t, experts]: the parts of a row in their order; 0 where nothing was computed.
extern "C" __global__ void expert_gates(const u32* bits, const u32* rows_tk, const float* parts, void* dw, u64 tokens, u64 experts, u64 words, u64 most,
                                        u64 room, u64 count, u64 half) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= tokens * experts) return;
    const u64 token = at / experts, expert = at % experts;
    float sum = 0.0f;
    if (bits[token * words + expert / 32] >> (expert % 32) & 1) {
        u32 rank = __popc(bits[token * words + expert / 32] & ((1u << expert % 32) - 1));
        for (u32 word = 0; word < expert / 32; word++) rank += __popc(bits[token * words + word]);
        const u32 row = rows_tk[token * most + rank];
        for (u64 part = 0; part < count; part++) sum += parts[part * room + row];
    }
    store_one(dw, at, half, sum);
}

// Values of rows as values of tokens [t, I], in the model's order of neurons; 0 where nothing was computed. A block a token; every neuron has its
// expert and its place among that expert's.
extern "C" __global__ void __launch_bounds__(256)
expert_dense(const u32* bits, const u32* rows_tk, const u16* v, const u32* neuron_expert, const u32* neuron_place, u16* out, u64 words, u64 most,
             u64 width, u64 all) {
    u32* const own = (u32*)shared; // the token's bits, and the number of experts before each word of them
    u32* const before = own + words;
    const u64 token = blockIdx.x;
    for (u32 word = threadIdx.x; word < words; word += blockDim.x) own[word] = bits[token * words + word];
    __syncthreads();
    for (u32 word = threadIdx.x; word < words; word += blockDim.x) {
        u32 count = 0;
        for (u32 other = 0; other < word; other++) count += __popc(own[other]);
        before[word] = count;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < all; i += blockDim.x) {
        const u32 expert = neuron_expert[i], word = own[expert / 32], bit = 1u << expert % 32;
        u16 value = 0;
        if (word & bit) {
            const u32 row = rows_tk[token * most + before[expert / 32] + __popc(word & (bit - 1))];
            value = v[row * width + neuron_place[i]];
        }
        out[token * all + i] = value;
    }
}
