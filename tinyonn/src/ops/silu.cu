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
