// a + b, a ⊙ b, and x in another type (elementwise.rs): a chunk a thread, or four values of two types; the last thread takes what is left.

template <bool HALF>
__device__ void combine(const void* a, const void* b, void* y, u64 n, bool product) {
    typedef Chunk<HALF> Values;
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, from = at * Values::N;
    if (from + Values::N <= n) {
        const Values x = Values::read(a, at, true), other = Values::read(b, at, true);
        float out[Values::N];
        for (int k = 0; k < Values::N; k++) out[k] = product ? x[k] * other[k] : x[k] + other[k];
        Values::of(out).write(y, at);
        return;
    }
    for (u64 i = from; i < n; i++) {
        const float x = load_one(a, i, HALF), other = load_one(b, i, HALF);
        store_one(y, i, HALF, product ? x * other : x + other);
    }
}

extern "C" __global__ void elementwise(const void* a, const void* b, void* y, u64 n, u64 product, u64 half) {
    if (half) combine<true>(a, b, y, n, product);
    else combine<false>(a, b, y, n, product);
}

extern "C" __global__ void cast(const void* x, void* y, u64 n, u64 half_x, u64 half_y) {
    const u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= n) {
        store(y, i, half_y, load(x, i, half_x));
        return;
    }
    for (u64 j = i; j < n; j++) store_one(y, j, half_y, load_one(x, j, half_x));
}
