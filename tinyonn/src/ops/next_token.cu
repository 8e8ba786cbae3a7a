// What a step of decoding begins and ends with: rows of the embedding, and the token with the highest logit of every row, which the next step reads.
//
// Legend: b rows, d hidden, v vocabulary. Logits [b, v] f32. Ties go to the lower token; what is no number is no choice, and where nothing is, the token is the highest number
// there is.

const int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) embedded_rows(const unsigned* ids, const void* table, void* x, u64 d, u64 vocabulary, u64 half) {
    // In this order: no launch of a step begins before the step ahead has ended, so that what steps write, such as the position, is there for all of its launches.
    wait_for_the_launch_before();
    let_the_next_launch_begin();
    const unsigned id = ids[blockIdx.x];
    for (u64 j = threadIdx.x; j < d; j += THREADS) {
        store_one(x, blockIdx.x * d + j, half, id < vocabulary ? load_one(table, id * d + j, half) : 0.0f);
    }
}

// The order of logits, then of tokens backwards; 0 for what is no choice.
__device__ u64 as_key(float logit, unsigned token) {
    const unsigned bits = __float_as_uint(logit);
    if (logit != logit || bits == 0xff800000u) return 0;
    const unsigned order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)order << 32 | ~token;
}

// Blocks: parts of the vocabulary, rows. The last block of all writes what they found, and moves one position on.
extern "C" __global__ void __launch_bounds__(THREADS)
next_token(const float* logits, u64* found, unsigned* arrived, unsigned* ids, unsigned* position, u64 vocabulary) {
    __shared__ u64 of_warp[THREADS / 32];
    __shared__ bool last;
    let_the_next_launch_begin();
    wait_for_the_launch_before();
    const u64 row = blockIdx.y;
    u64 best = 0;
    for (u64 token = blockIdx.x * THREADS + threadIdx.x; token < vocabulary; token += gridDim.x * THREADS) {
        best = max(best, as_key(logits[row * vocabulary + token], token));
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, lanes));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < THREADS / 32; warp++) best = max(best, of_warp[warp]);
        found[row * gridDim.x + blockIdx.x] = best;
        __threadfence();
        last = atomicAdd(arrived, 1) == gridDim.x * gridDim.y - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (unsigned own = threadIdx.x / 32; own < gridDim.y; own += THREADS / 32) {
        u64 top = 0;
        for (unsigned part = threadIdx.x % 32; part < gridDim.x; part += 32) top = max(top, __ldcg(found + own * gridDim.x + part));
        for (int lanes = 16; lanes > 0; lanes /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, lanes));
        if (threadIdx.x % 32 == 0) ids[own] = top ? ~(unsigned)top : 0xffffffffu;
    }
    if (threadIdx.x == 0) *position += 1, *arrived = 0;
}
