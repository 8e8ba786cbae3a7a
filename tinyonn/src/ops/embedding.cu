// The gradient of an embedding (embedding.rs has the formula), without atomics: row v of dW is the sum of dy over the tokens with id v, in their
// order, each row added by one block: that of the first such token.

extern "C" __global__ void embedding_gradient(const unsigned* ids, const void* dy, void* dw, u64 tokens, u64 rows, u64 d, u64 half_dy, u64 half_dw) {
    const u64 own = blockIdx.x;
    const unsigned id = ids[own];
    if (id >= rows) return;
    int before = 0;
    for (u64 t = threadIdx.x; t < own; t += blockDim.x) before |= ids[t] == id;
    if (__syncthreads_or(before)) return;
    // 256 tokens at a time: which of them have the id, a bit each.
    __shared__ unsigned marks[8];
    for (u64 from = 0; from < d; from += blockDim.x) {
        const u64 c = from + threadIdx.x;
        float sum = 0.0f;
        for (u64 first = own / 256 * 256; first < tokens; first += 256) {
            const u64 t = first + threadIdx.x;
            const unsigned bits = __ballot_sync(0xffffffffu, t < tokens && ids[t] == id);
            __syncthreads();
            if (threadIdx.x % 32 == 0) marks[threadIdx.x / 32] = bits;
            __syncthreads();
            if (c >= d) continue;
            for (int word = 0; word < 8; word++) {
                for (unsigned left = marks[word]; left; left &= left - 1) {
                    sum += load_one(dy, (first + 32 * word + __ffs(left) - 1) * d + c, half_dy);
                }
            }
        }
        if (c < d) store_one(dw, id * d + c, half_dw, load_one(dw, id * d + c, half_dw) + sum);
    }
}
