// h = silu(g) ⊙ u and its derivative (activation.rs has the formulas), elementwise: a thread takes a chunk, the last thread what is left.

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ float silu(float g, float u) { return g * sigmoid(g) * u; }

template <bool HALF>
__device__ void forward(const void* g, const void* u, void* h, u64 n) {
    typedef Chunk<HALF> Values;
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, from = at * Values::N;
    if (from + Values::N <= n) {
        const Values a = Values::read(g, at, true), b = Values::read(u, at, true);
        float out[Values::N];
        for (int k = 0; k < Values::N; k++) out[k] = silu(a[k], b[k]);
        Values::of(out).write(h, at);
        return;
    }
    for (u64 i = from; i < n; i++) store_one(h, i, HALF, silu(load_one(g, i, HALF), load_one(u, i, HALF)));
}

extern "C" __global__ void silu_forward(const void* g, const void* u, void* h, u64 n, u64 half) {
    if (half) forward<true>(g, u, h, n);
    else forward<false>(g, u, h, n);
}

__device__ void slopes(float& g, float& u, float& h, float delta) {
    const float s = sigmoid(g), of_u = delta * g * s;
    h = g * s * u;
    g = delta * u * s * (1.0f + g * (1.0f - s));
    u = of_u;
}

template <bool HALF>
__device__ void backward(const void* g, const void* u, const void* delta, void* dg, void* du, void* h, u64 n) {
    typedef Chunk<HALF> Values;
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, from = at * Values::N;
    if (from + Values::N <= n) {
        const Values a = Values::read(g, at, true), b = Values::read(u, at, true), c = Values::read(delta, at, true);
        float of_g[Values::N], of_u[Values::N], of_h[Values::N];
        for (int k = 0; k < Values::N; k++) {
            of_g[k] = a[k], of_u[k] = b[k];
            slopes(of_g[k], of_u[k], of_h[k], c[k]);
        }
        Values::of(of_g).write(dg, at);
        Values::of(of_u).write(du, at);
        if (h) Values::of(of_h).write(h, at);
        return;
    }
    for (u64 i = from; i < n; i++) {
        float a = load_one(g, i, HALF), b = load_one(u, i, HALF), c;
        slopes(a, b, c, load_one(delta, i, HALF));
        store_one(dg, i, HALF, a);
        store_one(du, i, HALF, b);
        if (h) store_one(h, i, HALF, c);
    }
}

// And h once more, if there is room for it.
extern "C" __global__ void silu_backward(const void* g, const void* u, const void* delta, void* dg, void* du, void* h, u64 n, u64 half) {
    if (half) backward<true>(g, u, delta, dg, du, h, n);
    else backward<false>(g, u, delta, dg, du, h, n);
}

// --- The same of experts under gates: h = w[t, expert of i] silu(g) u, w [t, n] of the type of g.

typedef unsigned u32;

// A block a token.
extern "C" __global__ void __launch_bounds__(256)
gated_silu_forward(const void* g, const void* u, const void* w, const u32* neuron_expert, void* h, u64 width, u64 experts, u64 half) {
    const u64 token = blockIdx.x, whole = width % 4 == 0 ? width : 0;
    for (u64 i = 4 * threadIdx.x; i < whole; i += 4 * blockDim.x) {
        Four a = load(g, token * width + i, half);
        const Four b = load(u, token * width + i, half);
        for (int k = 0; k < 4; k++) a.x[k] = silu(a.x[k], b.x[k]) * load_one(w, token * experts + neuron_expert[i + k], half);
        store(h, token * width + i, half, a);
    }
    for (u64 i = whole + threadIdx.x; i < width; i += blockDim.x) {
        const u64 at = token * width + i;
        const float gate = load_one(w, token * experts + neuron_expert[i], half);
        store_one(h, at, half, silu(load_one(g, at, half), load_one(u, at, half)) * gate);
    }
}

extern __shared__ float products[]; // δ_h silu(g) u of a token, [i]

// δ_g, δ_u, and δ_w[t, n] = Σ δ_h silu(g) u over the neurons of n: a block a token, a warp an expert at a time, in the order of its neurons.
extern "C" __global__ void __launch_bounds__(256)
gated_silu_backward(const void* g, const void* u, const void* delta, const void* w, const u32* neuron_expert, const u32* order, const u32* starts, void* dg,
                    void* du, void* dw, u64 width, u64 experts, u64 half) {
    const u64 token = blockIdx.x, whole = width % 4 == 0 ? width : 0;
    for (u64 i = 4 * threadIdx.x; i < whole; i += 4 * blockDim.x) {
        const u64 at = token * width + i;
        Four a = load(g, at, half), b = load(u, at, half);
        const Four of_h = load(delta, at, half);
        for (int k = 0; k < 4; k++) {
            float h;
            slopes(a.x[k], b.x[k], h, of_h.x[k] * load_one(w, token * experts + neuron_expert[i + k], half));
            products[i + k] = of_h.x[k] * h;
        }
        store(dg, at, half, a);
        store(du, at, half, b);
    }
    for (u64 i = whole + threadIdx.x; i < width; i += blockDim.x) {
        const u64 at = token * width + i;
        float a = load_one(g, at, half), b = load_one(u, at, half), h;
        const float of_h = load_one(delta, at, half), gate = load_one(w, token * experts + neuron_expert[i], half);
        slopes(a, b, h, of_h * gate);
        products[i] = of_h * h;
        store_one(dg, at, half, a);
        store_one(du, at, half, b);
    }
    __syncthreads();
    for (u64 expert = threadIdx.x / 32; expert < experts; expert += blockDim.x / 32) {
        float sum = 0.0f;
        for (u32 at = starts[expert] + threadIdx.x % 32; at < starts[expert + 1]; at += 32) sum += products[order[at]];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) store_one(dw, token * experts + expert, half, sum);
    }
}
