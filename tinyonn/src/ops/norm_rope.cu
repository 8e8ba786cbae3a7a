// The norm of every head of queries and of keys, turned by its position's angles, and the derivative of both (norm_rope.rs has the formulas).
//
// A head is two halves of d / 2 values; `lanes` lanes, a power of two, take a chunk of each half, so that a pair is in one lane. Angles are [T, d / 2] in
// the type of the rest. Queries are what the first blocks take, keys what the others do.

struct Heads {
    const void *x, *w, *dy;
    void* y;      // or dx
    float* parts; // Σ dy ⊙ n of every block
    u64 count;    // of heads
    unsigned heads; // of a position
};

// A pair's values of one lane.
template <bool HALF>
struct Pairs {
    Chunk<HALF> a, b;

    __device__ static Pairs read(const void* from, u64 at, unsigned lanes, bool there) {
        return {Chunk<HALF>::read(from, at, there), Chunk<HALF>::read(from, at + lanes, there)};
    }
};

__device__ float lane_sum(float x, unsigned lanes) {
    for (unsigned apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
}

template <bool HALF>
__device__ void forward_heads(const Heads& of, u64 block, const void* cosines, const void* sines, unsigned positions, unsigned d, float eps) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    const unsigned lanes = d / 2 / N, own = threadIdx.x % lanes;
    const u64 head = block * (256 / lanes) + threadIdx.x / lanes;
    const bool there = head < of.count;
    const u64 first = head * 2 * lanes + own, angle = (unsigned)(head / of.heads) % positions * lanes + own;
    const Pairs<HALF> x = Pairs<HALF>::read(of.x, first, lanes, there), w = Pairs<HALF>::read(of.w, own, lanes, true);
    const Values c = Values::read(cosines, angle, there), s = Values::read(sines, angle, there);
    float squares = 0.0f;
    for (int k = 0; k < N; k++) squares += x.a[k] * x.a[k];
    for (int k = 0; k < N; k++) squares += x.b[k] * x.b[k];
    const float r = 1.0f / sqrtf(lane_sum(squares, lanes) / d + eps);
    float a[N], b[N];
    for (int k = 0; k < N; k++) {
        const float p = as_stored(as_stored(x.a[k] * r, HALF) * w.a[k], HALF), q = as_stored(as_stored(x.b[k] * r, HALF) * w.b[k], HALF);
        a[k] = p * c[k] - q * s[k];
        b[k] = q * c[k] + p * s[k];
    }
    if (!there) return;
    Values::of(a).write(of.y, first);
    Values::of(b).write(of.y, first + lanes);
}

template <bool HALF>
__device__ void backward_heads(const Heads& of, u64 block, u64 blocks, const void* cosines, const void* sines, unsigned positions, unsigned d, float eps) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    const unsigned lanes = d / 2 / N, own = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = 256 / lanes;
    const Pairs<HALF> w = Pairs<HALF>::read(of.w, own, lanes, true);
    float dw[2][N];
    for (int k = 0; k < N; k++) dw[0][k] = dw[1][k] = 0.0f;
    for (u64 from = block * groups; from < of.count; from += blocks * groups) {
        const u64 head = from + group, first = head * 2 * lanes + own, angle = (unsigned)(head / of.heads) % positions * lanes + own;
        const bool there = head < of.count;
        const Pairs<HALF> x = Pairs<HALF>::read(of.x, first, lanes, there), dy = Pairs<HALF>::read(of.dy, first, lanes, there);
        const Values c = Values::read(cosines, angle, there), s = Values::read(sines, angle, there);
        float a[N], b[N], squares = 0.0f, products = 0.0f;
        for (int k = 0; k < N; k++) {
            // Turned back.
            a[k] = as_stored(dy.a[k] * c[k] + dy.b[k] * s[k], HALF);
            b[k] = as_stored(dy.b[k] * c[k] - dy.a[k] * s[k], HALF);
            squares += x.a[k] * x.a[k] + x.b[k] * x.b[k];
            products += a[k] * w.a[k] * x.a[k] + b[k] * w.b[k] * x.b[k];
        }
        const float all_squares = lane_sum(squares, lanes), all_products = lane_sum(products, lanes);
        // What is no head adds nothing, whatever eps is.
        const float r = there ? 1.0f / sqrtf(all_squares / d + eps) : 0.0f, mean = all_products * r / d;
        for (int k = 0; k < N; k++) {
            const float n = x.a[k] * r, m = x.b[k] * r;
            dw[0][k] += a[k] * n;
            dw[1][k] += b[k] * m;
            a[k] = r * (a[k] * w.a[k] - n * mean);
            b[k] = r * (b[k] * w.b[k] - m * mean);
        }
        if (there) {
            Values::of(a).write(of.y, first);
            Values::of(b).write(of.y, first + lanes);
        }
    }
    if (!of.parts) return;
    // Over the groups of a warp, then over warps.
    __shared__ float of_warp[8][2 * 32 * N];
    for (int half = 0; half < 2; half++) {
        for (int k = 0; k < N; k++) {
            float sum = dw[half][k];
            for (unsigned apart = lanes; apart < 32; apart *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
            if (threadIdx.x % 32 < lanes) of_warp[threadIdx.x / 32][half * (d / 2) + own * N + k] = sum;
        }
    }
    __syncthreads();
    for (unsigned column = threadIdx.x; column < d; column += 256) {
        float sum = 0.0f;
        for (int warp = 0; warp < 8; warp++) sum += of_warp[warp][column];
        of.parts[block * d + column] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
norm_rope_forward(const void* q, const void* wq, void* yq, u64 all_q, u64 heads_q, const void* k, const void* wk, void* yk, u64 all_k, u64 heads_k,
                  u64 blocks_q, const void* cosines, const void* sines, u64 positions, u64 d, float eps, u64 half) {
    const bool keys = blockIdx.x >= blocks_q;
    const Heads of = keys ? Heads{k, wk, 0, yk, 0, all_k, (unsigned)heads_k} : Heads{q, wq, 0, yq, 0, all_q, (unsigned)heads_q};
    const u64 block = keys ? blockIdx.x - blocks_q : blockIdx.x;
    if (half) forward_heads<true>(of, block, cosines, sines, positions, d, eps);
    else forward_heads<false>(of, block, cosines, sines, positions, d, eps);
}

extern "C" __global__ void __launch_bounds__(256)
norm_rope_backward(const void* q, const void* wq, const void* dyq, void* dq, float* parts_q, u64 all_q, u64 heads_q, const void* k, const void* wk,
                   const void* dyk, void* dk, float* parts_k, u64 all_k, u64 heads_k, u64 blocks_q, const void* cosines, const void* sines,
                   u64 positions, u64 d, float eps, u64 half) {
    const bool keys = blockIdx.x >= blocks_q;
    const Heads of = keys ? Heads{k, wk, dyk, dk, parts_k, all_k, (unsigned)heads_k} : Heads{q, wq, dyq, dq, parts_q, all_q, (unsigned)heads_q};
    const u64 block = keys ? blockIdx.x - blocks_q : blockIdx.x, blocks = keys ? gridDim.x - blocks_q : blocks_q;
    if (half) backward_heads<true>(of, block, blocks, cosines, sines, positions, d, eps);
    else backward_heads<false>(of, block, blocks, cosines, sines, positions, d, eps);
}
