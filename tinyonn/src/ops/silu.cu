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
