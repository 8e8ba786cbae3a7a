// h = silu(g) ⊙ u and its derivative (activation.rs has the formulas), elementwise: a thread takes four values, the last ones one by one.

struct Span {
    u64 from, to;
    bool four;

    __device__ Span(u64 n) {
        from = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
        to = min(from + 4, n);
        four = from + 4 <= n;
    }
};

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ float silu(float g, float u) { return g * sigmoid(g) * u; }

extern "C" __global__ void silu_forward(const void* g, const void* u, void* h, u64 n, u64 half) {
    const Span span(n);
    if (span.four) {
        Four a = load(g, span.from, half);
        const Four b = load(u, span.from, half);
        for (int k = 0; k < 4; k++) a.x[k] = silu(a.x[k], b.x[k]);
        store(h, span.from, half, a);
        return;
    }
    for (u64 i = span.from; i < span.to; i++) store_one(h, i, half, silu(load_one(g, i, half), load_one(u, i, half)));
}

__device__ void slopes(float& g, float& u, float delta) {
    const float s = sigmoid(g), of_u = delta * g * s;
    g = delta * u * s * (1.0f + g * (1.0f - s));
    u = of_u;
}

extern "C" __global__ void silu_backward(const void* g, const void* u, const void* delta, void* dg, void* du, u64 n, u64 half) {
    const Span span(n);
    if (span.four) {
        Four a = load(g, span.from, half), b = load(u, span.from, half);
        const Four c = load(delta, span.from, half);
        for (int k = 0; k < 4; k++) slopes(a.x[k], b.x[k], c.x[k]);
        store(dg, span.from, half, a);
        store(du, span.from, half, b);
        return;
    }
    for (u64 i = span.from; i < span.to; i++) {
        float a = load_one(g, i, half), b = load_one(u, i, half);
        slopes(a, b, load_one(delta, i, half));
        store_one(dg, i, half, a);
        store_one(du, i, half, b);
    }
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
            products[i + k] = of_h.x[k] * silu(a.x[k], b.x[k]);
            slopes(a.x[k], b.x[k], of_h.x[k] * load_one(w, token * experts + neuron_expert[i + k], half));
        }
        store(dg, at, half, a);
        store(du, at, half, b);
    }
    for (u64 i = whole + threadIdx.x; i < width; i += blockDim.x) {
        const u64 at = token * width + i;
        float a = load_one(g, at, half), b = load_one(u, at, half);
        const float of_h = load_one(delta, at, half), gate = load_one(w, token * experts + neuron_expert[i], half);
        products[i] = of_h * silu(a, b);
        slopes(a, b, of_h * gate);
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
