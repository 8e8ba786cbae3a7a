// The products of experts' rows by Hopper's warpgroups, for compute capability 9.0a. Legend and formulas are those of expert_products.cu; goes
// behind numbers.cu, tiles.cu and wgmma.cu with ROW_VALUES 64.
//
// A block stays on its multiprocessor and takes tiles blockIdx.x, blockIdx.x + gridDim.x, ...: two warpgroups multiply, a third copies rows that
// are found by lists, through a ring of stages of lines of 128 bytes. Every value is the sum of one thread in one order.

const int MULTIPLIERS = 256, COPIERS = 128;

// --- The ring: stages of LINES lines, behind them a pair of barriers for each, behind these the table of tiles.

// Arrives when all copies that this thread has begun are there.
__device__ void arrive_behind_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

template <int STAGES, int LINES>
struct Ring {
    static const u32 STAGE = LINES * LINE, BARRIERS = STAGES * STAGE, TABLE = BARRIERS + STAGES * 16;
    u32 at = 0, parity = 0;

    __device__ u32 stage() const { return at * STAGE; }
    __device__ u32 full() const { return BARRIERS + at * 16; }
    __device__ u32 empty() const { return full() + 8; }
    __device__ void advance() {
        if (++at == STAGES) at = 0, parity ^= 1;
    }
    __device__ static void make() {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) make_barrier(BARRIERS + i * 16, COPIERS), make_barrier(BARRIERS + i * 16 + 8, MULTIPLIERS / 32);
            publish_barriers();
        }
    }
};

// Tiles of every expert, in the order of experts: where an expert's begin.
struct Tiles {
    u32* first;
    u32 experts;

    // An expert has ⌈rows / ROWS⌉ · parts of them.
    __device__ Tiles(u32 table, const u32* starts, u32 count, u32 rows, u32 parts) : first((u32*)((unsigned char*)shared + table)), experts(count) {
        if (threadIdx.x < 32) {
            u32 before = 0;
            for (u32 base = 0; base < experts; base += 32) {
                const u32 expert = base + lane();
                const u32 own = expert < experts ? (starts[expert + 1] - starts[expert] + rows - 1) / rows * parts : 0;
                u32 sum = own;
                for (int step = 1; step < 32; step *= 2) {
                    const u32 below = __shfl_up_sync(0xffffffffu, sum, step);
                    if (lane() >= step) sum += below;
                }
                if (expert < experts) first[expert] = before + sum - own;
                before += __shfl_sync(0xffffffffu, sum, 31);
            }
            if (lane() == 0) first[experts] = before;
        }
    }
    __device__ u32 count() const { return first[experts]; }
    __device__ u32 expert(u32 tile) const {
        u32 low = 0, high = experts;
        while (high - low > 1) {
            const u32 middle = (low + high) / 2;
            if (first[middle] <= tile) low = middle; else high = middle;
        }
        return low;
    }
};

// The steps of one tile by a warpgroup: c[s] of 64 rows each. a_own and b_own: where its lines begin in a stage.
template <int A_COLUMNS, int B_COLUMNS, int SUBS, int N, int STAGES, int LINES>
__device__ void sum_steps(float (&c)[SUBS][N][4], Ring<STAGES, LINES>& ring, int steps, u32 a_own, u32 b_own) {
    const u64 a_first = operand(a_own, A_COLUMNS ? BOX : 16), b_first = operand(b_own, B_COLUMNS ? BOX : 16);
    const u32 a_step = A_COLUMNS ? 16 * LINE / 16 : 2, b_step = B_COLUMNS ? 16 * LINE / 16 : 2;
    u32 before = 0;
    for (int step = 0; step < steps; step++) {
        wait(ring.full(), ring.parity);
        publish_writes();
        begin_products();
        const u64 a = a_first + ring.stage() / 16, b = b_first + ring.stage() / 16;
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int s = 0; s < SUBS; s++) begin_product<A_COLUMNS, B_COLUMNS>(c[s], a + s * (BOX / 16) + k * a_step, b + k * b_step, step > 0 || k > 0);
        }
        commit_products();
        wait_for_products<1>();
        if (step > 0 && lane() == 0) arrive(before);
        before = ring.empty();
        ring.advance();
    }
    wait_for_products<0>();
    if (lane() == 0) arrive(before);
#pragma unroll
    for (int s = 0; s < SUBS; s++) settle(c[s]);
}

__device__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Neurons are dealt to columns so that a thread's are eight that follow one another: of sums n, column 2 q + e of eight, neuron
// n / 4 * 32 + q * 8 + n % 4 * 2 + e.
__device__ u32 dealt(u32 n, u32 in_eight) { return n / 4 * 32 + in_eight / 2 * 8 + n % 4 * 2 + in_eight % 2; }

// --- Products over d.

// Copies A_LINES rows of a and B_LINES rows of b, step by step along d.
template <int A_LINES, int B_LINES, int STAGES, int LINES>
__device__ void copy_hidden(Ring<STAGES, LINES>& ring, const u16* b, const u16* a, const u32 (&a_row)[A_LINES / 16],
                            const u32 (&b_row)[B_LINES / 16], u32 there, u64 d) {
    const u32 thread = threadIdx.x % COPIERS, to_own = place(thread / 8, thread % 8);
    u64 column = thread % 8 * 8;
    for (u32 step = 0, steps = d / 64; step < steps; step++, column += 64) {
        wait(ring.empty(), ring.parity ^ 1);
        const u32 to = ring.stage() + to_own;
#pragma unroll
        for (int i = 0; i < A_LINES / 16; i++) copy16(to + i * 16 * LINE, a + (a_row[i] * d + column), true);
#pragma unroll
        for (int i = 0; i < B_LINES / 16; i++) {
            copy16(to + (A_LINES + i * 16) * LINE, b + (b_row[i] * d + column), there >> i & 1);
        }
        arrive_behind_copies(ring.full());
        ring.advance();
    }
}

template <int SUBS, int N, int STAGES>
__device__ void up(const u16* x, const u16* w_gate, const u16* w_up, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens,
                   const float* gates, u16* g, u16* u, u16* h, u64 d, u64 width, u64 experts) {
    typedef Ring<STAGES, 128 * SUBS + 8 * N> OwnRing;
    const u32 ROWS = 128 * SUBS, NEURONS = 4 * N, slabs = (width + NEURONS - 1) / NEURONS;
    OwnRing::make();
    const Tiles tiles(OwnRing::TABLE, starts, experts, ROWS, slabs);
    __syncthreads();
    const u32 count = tiles.count();
    OwnRing ring;
    if (threadIdx.x >= MULTIPLIERS) {
        leave_registers<72>();
        const u32 thread = threadIdx.x % COPIERS;
        const u16* const b = thread < 64 ? w_gate : w_up; // of 16 lines the first eight, and the others
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], slab = rest % slabs;
            const u32 first = starts[expert] + rest / slabs * ROWS, last = starts[expert + 1] - 1;
            const u32 neuron = neuron_starts[expert] + slab * NEURONS, end = neuron_starts[expert + 1];
            u32 a_row[ROWS / 16], b_row[N / 2], there = 0;
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) a_row[i] = tokens[min(first + thread / 8 + i * 16, last)];
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                // Of sums 2 i and 2 i + 1: g and u of the same neurons.
                const u32 own = neuron + dealt(i, thread / 8 % 8);
                there |= (own < end) << i;
                b_row[i] = own < end ? neurons[own] : 0;
            }
            copy_hidden<ROWS, 8 * N>(ring, b, x, a_row, b_row, there, d);
        }
    } else {
        take_registers<216>();
        const u32 group = threadIdx.x / 128, in_group = threadIdx.x % 128;
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], slab = rest % slabs;
            const u32 first = starts[expert] + rest / slabs * ROWS, end = starts[expert + 1];
            float c[SUBS][N][4];
            sum_steps<0, 0>(c, ring, d / 64, group * SUBS * BOX, ROWS * LINE);
#pragma unroll
            for (int i = 0; i < 2 * SUBS; i++) {
                const int half = i % 2, row = first + (group * SUBS + i / 2) * 64 + in_group / 32 * 16 + own_row(0, half);
                if (row >= end) continue;
                const float w = gates[row];
#pragma unroll
                for (int four = 0; four < N / 8; four++) {
                    const u32 column = slab * NEURONS + four * 32 + lane() % 4 * 8;
                    u32 gs[4], us[4], hs[4];
#pragma unroll
                    for (int p = 0; p < 4; p++) {
                        const int n = 2 * (four * 4 + p);
                        gs[p] = packed(c[i / 2][n][2 * half], c[i / 2][n][2 * half + 1]);
                        us[p] = packed(c[i / 2][n + 1][2 * half], c[i / 2][n + 1][2 * half + 1]);
                        hs[p] = packed(low(gs[p]) * sigmoid(low(gs[p])) * low(us[p]) * w, high(gs[p]) * sigmoid(high(gs[p])) * high(us[p]) * w);
                    }
                    if (column >= width) continue;
                    const u64 to = row * width + column;
                    *(uint4*)(g + to) = make_uint4(gs[0], gs[1], gs[2], gs[3]);
                    *(uint4*)(u + to) = make_uint4(us[0], us[1], us[2], us[3]);
                    *(uint4*)(h + to) = make_uint4(hs[0], hs[1], hs[2], hs[3]);
                }
            }
        }
    }
}

#define UP(NAME, SUBS, N, STAGES)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                                           \
    NAME(const u16* x, const u16* w_gate, const u16* w_up, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens,     \
         const float* gates, u16* g, u16* u, u16* h, u64 d, u64 width, u64 experts) {                                                              \
        up<SUBS, N, STAGES>(x, w_gate, w_up, neurons, neuron_starts, starts, tokens, gates, g, u, h, d, width, experts);                           \
    }

UP(up_128, 1, 32, 4)
UP(up_64, 2, 16, 4)

// parts [slabs, r]: what every slab adds to Σ_i δ_h silu(g) u.
template <int SUBS, int N, int STAGES>
__device__ void deltas(const u16* dy, const u16* w_down, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens,
                       const float* gates, const u16* g, const u16* u, u16* dh, u16* dg, u16* du, float* parts, u64 d, u64 width, u64 room, u64 experts) {
    typedef Ring<STAGES, 128 * SUBS + 8 * N> OwnRing;
    const u32 ROWS = 128 * SUBS, NEURONS = 8 * N, slabs = (width + NEURONS - 1) / NEURONS;
    OwnRing::make();
    const Tiles tiles(OwnRing::TABLE, starts, experts, ROWS, slabs);
    __syncthreads();
    const u32 count = tiles.count();
    OwnRing ring;
    if (threadIdx.x >= MULTIPLIERS) {
        leave_registers<72>();
        const u32 thread = threadIdx.x % COPIERS;
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], slab = rest % slabs;
            const u32 first = starts[expert] + rest / slabs * ROWS, last = starts[expert + 1] - 1;
            const u32 neuron = neuron_starts[expert] + slab * NEURONS, end = neuron_starts[expert + 1];
            u32 a_row[ROWS / 16], b_row[N / 2], there = 0;
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) a_row[i] = tokens[min(first + thread / 8 + i * 16, last)];
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                const u32 own = neuron + dealt(2 * i + thread / 64, thread / 8 % 8);
                there |= (own < end) << i;
                b_row[i] = own < end ? neurons[own] : 0;
            }
            copy_hidden<ROWS, 8 * N>(ring, w_down, dy, a_row, b_row, there, d);
        }
    } else {
        take_registers<216>();
        const u32 group = threadIdx.x / 128, in_group = threadIdx.x % 128;
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], slab = rest % slabs;
            const u32 first = starts[expert] + rest / slabs * ROWS, end = starts[expert + 1];
            float c[SUBS][N][4];
            sum_steps<0, 0>(c, ring, d / 64, group * SUBS * BOX, ROWS * LINE);
#pragma unroll
            for (int i = 0; i < 2 * SUBS; i++) {
                const int half = i % 2, row = first + (group * SUBS + i / 2) * 64 + in_group / 32 * 16 + own_row(0, half);
                float sum = 0.0f;
                if (row < end) {
                    const float w = gates[row];
#pragma unroll
                    for (int four = 0; four < N / 4; four++) {
                        const u32 column = slab * NEURONS + four * 32 + lane() % 4 * 8;
                        if (column >= width) continue;
                        const u64 to = row * width + column;
                        const uint4 g4 = *(const uint4*)(g + to), u4 = *(const uint4*)(u + to);
                        const u32 gs[4] = {g4.x, g4.y, g4.z, g4.w}, us[4] = {u4.x, u4.y, u4.z, u4.w};
                        u32 of_h[4], of_g[4], of_u[4];
#pragma unroll
                        for (int p = 0; p < 4; p++) {
                            float delta[2], by_g[2], by_u[2];
#pragma unroll
                            for (int e = 0; e < 2; e++) {
                                const float gate = e ? high(gs[p]) : low(gs[p]), up = e ? high(us[p]) : low(us[p]);
                                const float s = sigmoid(gate), q = c[i / 2][four * 4 + p][2 * half + e] * w;
                                delta[e] = c[i / 2][four * 4 + p][2 * half + e];
                                sum += delta[e] * gate * s * up;
                                by_g[e] = q * up * s * (1.0f + gate * (1.0f - s));
                                by_u[e] = q * gate * s;
                            }
                            of_h[p] = packed(delta[0], delta[1]);
                            of_g[p] = packed(by_g[0], by_g[1]);
                            of_u[p] = packed(by_u[0], by_u[1]);
                        }
                        *(uint4*)(dh + to) = make_uint4(of_h[0], of_h[1], of_h[2], of_h[3]);
                        *(uint4*)(dg + to) = make_uint4(of_g[0], of_g[1], of_g[2], of_g[3]);
                        *(uint4*)(du + to) = make_uint4(of_u[0], of_u[1], of_u[2], of_u[3]);
                    }
                }
                // The four lanes of a row.
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                if (lane() % 4 == 0 && row < end) parts[slab * room + row] = sum;
            }
        }
    }
}

#define DELTAS(NAME, SUBS, N, STAGES)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                                           \
    NAME(const u16* dy, const u16* w_down, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens, const float* gates, \
         const u16* g, const u16* u, u16* dh, u16* dg, u16* du, float* parts, u64 d, u64 width, u64 room, u64 experts) {                           \
        deltas<SUBS, N, STAGES>(dy, w_down, neurons, neuron_starts, starts, tokens, gates, g, u, dh, dg, du, parts, d, width, room, experts);      \
    }

DELTAS(deltas_128, 2, 16, 4)
DELTAS(deltas_64, 2, 8, 5)

// --- Products that have the columns of d: 128 rows and 256 columns a tile.

// Of four lanes each has pair q of chunks 0 to 3; afterwards it has the four pairs of chunk q.
__device__ uint4 own_chunk(u32 x0, u32 x1, u32 x2, u32 x3) {
    const bool odd = lane() & 1, upper = lane() & 2;
    u32 y = __shfl_xor_sync(0xffffffffu, odd ? x0 : x1, 1);
    if (odd) x0 = y; else x1 = y;
    y = __shfl_xor_sync(0xffffffffu, odd ? x2 : x3, 1);
    if (odd) x2 = y; else x3 = y;
    y = __shfl_xor_sync(0xffffffffu, upper ? x0 : x2, 2);
    if (upper) x0 = y; else x2 = y;
    y = __shfl_xor_sync(0xffffffffu, upper ? x1 : x3, 2);
    if (upper) x1 = y; else x3 = y;
    return make_uint4(x0, x1, x2, x3);
}

// A row's values of sums n to n + 3 of half `half`, as the chunk of a lane.
template <int N>
__device__ uint4 own_chunk(const float (&c)[N][4], int n, int half) {
    return own_chunk(packed(c[n][2 * half], c[n][2 * half + 1]), packed(c[n + 1][2 * half], c[n + 1][2 * half + 1]),
                     packed(c[n + 2][2 * half], c[n + 2][2 * half + 1]), packed(c[n + 3][2 * half], c[n + 3][2 * half + 1]));
}

typedef Ring<4, 384> WideRing;

// y[r] = Σ_i v[r, i] W[i] of one pair of v and W, or the sum of two.
extern "C" __global__ void __launch_bounds__(384, 1)
row_products(const u16* v0, const u16* v1, const u16* w0, const u16* w1, const u32* neurons, const u32* neuron_starts, const u32* starts, u16* y,
             u64 pairs, u64 d, u64 width, u64 experts) {
    const u32 columns = (d + 255) / 256;
    WideRing::make();
    const Tiles tiles(WideRing::TABLE, starts, experts, 128, columns);
    __syncthreads();
    const u32 count = tiles.count();
    WideRing ring;
    if (threadIdx.x >= MULTIPLIERS) {
        leave_registers<72>();
        const u32 thread = threadIdx.x % COPIERS, line = thread / 8, to_own = place(line, thread % 8);
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], column = rest % columns * 256 + thread % 8 * 8;
            const u32 first = starts[expert] + rest / columns * 128, last = starts[expert + 1] - 1;
            const u32 own = neuron_starts[expert], end = neuron_starts[expert + 1], slabs = max((end - own + 63) / 64, 1u);
            u32 a_row[8];
#pragma unroll
            for (int i = 0; i < 8; i++) a_row[i] = min(first + line + i * 16, last);
            for (u32 step = 0; step < pairs * slabs; step++) {
                const bool second = step >= slabs;
                const u32 slab = second ? step - slabs : step;
                const u16* v = (second ? v1 : v0) + slab * 64 + thread % 8 * 8;
                const u16* w = second ? w1 : w0;
                u32 b_row[4], there = 0;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 neuron = own + slab * 64 + line + i * 16;
                    there |= (neuron < end) << i;
                    b_row[i] = neuron < end ? neurons[neuron] : 0;
                }
                wait(ring.empty(), ring.parity ^ 1);
                const u32 to = ring.stage() + to_own;
#pragma unroll
                for (int i = 0; i < 8; i++) copy16(to + i * 16 * LINE, v + a_row[i] * width, true);
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    const bool in_row = (there >> i % 4 & 1) && column + i / 4 * 64 < d;
                    copy16(to + (128 + i * 16) * LINE, w + (b_row[i % 4] * d + (in_row ? column + i / 4 * 64 : 0)), in_row);
                }
                arrive_behind_copies(ring.full());
                ring.advance();
            }
        }
    } else {
        take_registers<216>();
        const u32 group = threadIdx.x / 128, in_group = threadIdx.x % 128;
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tiles.expert(tile), rest = tile - tiles.first[expert], column = rest % columns * 256 + lane() % 4 * 8;
            const u32 first = starts[expert] + rest / columns * 128, end = starts[expert + 1];
            const u32 slabs = max((neuron_starts[expert + 1] - neuron_starts[expert] + 63) / 64, 1u);
            float c[1][32][4];
            sum_steps<0, 1>(c, ring, pairs * slabs, group * BOX, 128 * LINE);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 row = first + group * 64 + in_group / 32 * 16 + own_row(0, half);
#pragma unroll
                for (int n = 0; n < 32; n += 4) {
                    const uint4 chunk = own_chunk(c[0], n, half);
                    if (row < end && column + n * 8 < d) *(uint4*)(y + (row * d + column + n * 8)) = chunk;
                }
            }
        }
    }
}

// dW[i] = Σ_r v[r, i] a[token of r] of one v, or of two. A warpgroup takes 64 neurons of one matrix.
extern "C" __global__ void __launch_bounds__(384, 1)
weight_sums(const u16* v0, const u16* v1, u64 matrices, const u16* a, const u32* neurons, const u32* neuron_starts, const u32* starts, const u32* tokens,
            void* dw0, void* dw1, u64 d, u64 width, u64 half, u64 add, u64 experts) {
    const u32 slabs = width / 64, parts = (matrices * slabs + 1) / 2, columns = (d + 255) / 256, count = experts * parts * columns;
    WideRing::make();
    __syncthreads();
    WideRing ring;
    if (threadIdx.x >= MULTIPLIERS) {
        leave_registers<72>();
        const u32 thread = threadIdx.x % COPIERS, line = thread / 8, to_own = place(line, thread % 8);
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tile / (parts * columns), rest = tile % (parts * columns), column = rest / parts * 256 + thread % 8 * 8;
            const u32 first = starts[expert], end = starts[expert + 1], steps = max((end - first + 63) / 64, 1u);
            const u32 panel0 = rest % parts * 2, panel1 = panel0 + 1;
            const u16* const from0 = (panel0 >= slabs ? v1 : v0) + panel0 % slabs * 64 + thread % 8 * 8;
            const u16* const from1 = (panel1 >= slabs ? v1 : v0) + panel1 % slabs * 64 + thread % 8 * 8;
            u32 token[4];
#pragma unroll
            for (int i = 0; i < 4; i++) token[i] = first + line + i * 16 < end ? tokens[first + line + i * 16] : 0;
            for (u32 step = 0; step < steps; step++) {
                wait(ring.empty(), ring.parity ^ 1);
                const u32 to = ring.stage() + to_own, row = first + step * 64 + line;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const bool there = row + i % 4 * 16 < end;
                    copy16(to + i * 16 * LINE, (i < 4 ? from0 : from1) + (there ? (row + i % 4 * 16) * width : 0), there);
                }
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    const bool there = row + i % 4 * 16 < end && column + i / 4 * 64 < d;
                    copy16(to + (128 + i * 16) * LINE, a + (token[i % 4] * d + (there ? column + i / 4 * 64 : 0)), there);
                }
                arrive_behind_copies(ring.full());
                ring.advance();
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 next = row + 64 + i * 16;
                    token[i] = next < end ? tokens[next] : 0;
                }
            }
        }
    } else {
        take_registers<216>();
        const u32 group = threadIdx.x / 128, in_group = threadIdx.x % 128;
        for (u32 tile = blockIdx.x; tile < count; tile += gridDim.x) {
            const u32 expert = tile / (parts * columns), rest = tile % (parts * columns), column = rest / parts * 256;
            const u32 steps = max((starts[expert + 1] - starts[expert] + 63) / 64, 1u), panel = rest % parts * 2 + group;
            float c[1][32][4];
            sum_steps<1, 1>(c, ring, steps, group * BOX, 128 * LINE);
            const bool own = panel < matrices * slabs;
            void* const dw = panel >= slabs ? dw1 : dw0;
            const u32 neuron = neuron_starts[expert] + panel % slabs * 64, end = neuron_starts[expert + 1];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const u32 row = neuron + in_group / 32 * 16 + own_row(0, side);
                const bool there = own && row < end;
                const u64 to = there ? neurons[row] * d : 0;
                if (half && !add) {
                    const u32 own_at = column + lane() % 4 * 8;
#pragma unroll
                    for (int n = 0; n < 32; n += 4) {
                        const uint4 chunk = own_chunk(c[0], n, side);
                        if (there && own_at + n * 8 < d) *(uint4*)((u16*)dw + to + own_at + n * 8) = chunk;
                    }
                } else if (there) {
#pragma unroll
                    for (int n = 0; n < 32; n++) {
                        if (column + n * 8 < d) put_pair(dw, to + column + own_column(n), half, add, c[0][n][2 * side], c[0][n][2 * side + 1]);
                    }
                }
            }
        }
    }
}
