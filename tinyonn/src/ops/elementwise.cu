// a + b, a ⊙ b, and x in another type (elementwise.rs): four values a thread.

extern "C" __global__ void elementwise(const void* a, const void* b, void* y, u64 n, u64 product, u64 half) {
    const u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= n) {
        Four x = load(a, i, half);
        const Four other = load(b, i, half);
        for (int k = 0; k < 4; k++) x.x[k] = product ? x.x[k] * other.x[k] : x.x[k] + other.x[k];
        store(y, i, half, x);
        return;
    }
    for (u64 j = i; j < n; j++) {
        const float x = load_one(a, j, half), other = load_one(b, j, half);
        store_one(y, j, half, product ? x * other : x + other);
    }
}

extern "C" __global__ void cast(const void* x, void* y, u64 n, u64 half_x, u64 half_y) {
    const u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= n) {
        store(y, i, half_y, load(x, i, half_x));
        return;
    }
    for (u64 j = i; j < n; j++) store_one(y, j, half_y, load_one(x, j, half_x));
}
