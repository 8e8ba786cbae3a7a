// Of neurons that choose themselves, the `most` best of every row (chosen_neurons.rs has the formula): the others' gates become 0. A block takes a row.
//
// The score of the last one that is taken is found bit by bit, by counting those that are not below; of those that are level with it the first are taken.

const int THREADS = 1024;
const int WARPS = THREADS / 32;

extern __shared__ unsigned keys[]; // of all neurons: a number of the score's order, above 0 if it is taken at all

// How many keys are at least `bound`.
__device__ unsigned at_least(unsigned bound, unsigned neurons) {
    __shared__ unsigned of_warp[WARPS];
    unsigned count = 0;
    for (unsigned i = threadIdx.x; i < neurons; i += THREADS) count += keys[i] >= bound;
    for (int lanes = 16; lanes > 0; lanes /= 2) count += __shfl_xor_sync(0xffffffffu, count, lanes);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = count;
    __syncthreads();
    count = of_warp[threadIdx.x % 32];
    for (int lanes = 16; lanes > 0; lanes /= 2) count += __shfl_xor_sync(0xffffffffu, count, lanes);
    return count;
}

extern "C" __global__ void __launch_bounds__(THREADS) best_neurons(const float* scores, float* taken, u64 neurons, u64 most) {
    __shared__ unsigned sums[WARPS];
    let_the_next_launch_begin();
    wait_for_the_launch_before();
    scores += blockIdx.x * neurons;
    taken += blockIdx.x * neurons;
    for (unsigned i = threadIdx.x; i < neurons; i += THREADS) keys[i] = taken[i] != 0.0f ? __float_as_uint(scores[i]) + 1 : 0;
    __syncthreads();
    if (at_least(1, neurons) <= most) return;
    unsigned bound = 0;
    for (int bit = 30; bit >= 0; bit--) {
        if (at_least(bound | 1u << bit, neurons) >= most) bound |= 1u << bit;
    }
    // So many of those whose key is `bound`, the first ones.
    const unsigned left = most - at_least(bound + 1, neurons);
    const unsigned span = (neurons + THREADS - 1) / THREADS, begin = min((unsigned)neurons, threadIdx.x * span), end = min((unsigned)neurons, begin + span);
    unsigned level = 0;
    for (unsigned i = begin; i < end; i++) level += keys[i] == bound;
    unsigned before = level;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned of = __shfl_up_sync(0xffffffffu, before, lanes);
        if (threadIdx.x % 32 >= lanes) before += of;
    }
    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = before;
    __syncthreads();
    before -= level;
    for (int warp = 0; warp < threadIdx.x / 32; warp++) before += sums[warp];
    for (unsigned i = begin; i < end; i++) {
        const unsigned key = keys[i];
        if (key && (key < bound || (key == bound && before++ >= left))) taken[i] = 0.0f;
    }
}
