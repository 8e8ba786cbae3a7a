// Of neurons that choose themselves, the `most` best of every row (chosen_neurons.rs has the formula): the others' gates become 0. A block takes a row.
//
// The score of the last one that is taken is found eight bits at a time, by counting; of those that are level with it the first are taken.

const int THREADS = 1024;
const int WARPS = THREADS / 32;

// A score as a number of the same order, above 0 if it is taken at all.
__device__ unsigned as_key(float score, float taken) { return taken != 0.0f ? __float_as_uint(score) + 1 : 0; }

extern "C" __global__ void __launch_bounds__(THREADS) best_neurons(const float* scores, float* taken, u64 neurons, u64 most) {
    extern __shared__ unsigned keys[]; // of all neurons
    __shared__ unsigned counts[256], sums[WARPS], bound, left;
    scores += blockIdx.x * neurons;
    taken += blockIdx.x * neurons;
    for (unsigned i = threadIdx.x; i < neurons; i += THREADS) keys[i] = as_key(scores[i], taken[i]);
    unsigned prefix = 0, wanted = most;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) counts[threadIdx.x] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < neurons; i += THREADS) {
            const unsigned key = keys[i];
            if (key && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))) atomicAdd(counts + (key >> shift & 255), 1);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            // Lane l has digits 8 l to 8 l + 7; those above come first.
            unsigned own = 0;
            for (int digit = 0; digit < 8; digit++) own += counts[8 * threadIdx.x + digit];
            unsigned above = 0;
            for (int lane = 31; lane > 0; lane--) {
                const unsigned of = __shfl_sync(0xffffffffu, own, lane);
                if (threadIdx.x < lane) above += of;
            }
            const unsigned all = __shfl_sync(0xffffffffu, above + own, 0);
            if (threadIdx.x == 0 && all < wanted) bound = 256; // all that are left are taken
            if (above < wanted && wanted <= above + own) {
                for (int digit = 7; digit >= 0; digit--) {
                    const unsigned count = counts[8 * threadIdx.x + digit];
                    if (wanted <= above + count) {
                        bound = 8 * threadIdx.x + digit, left = wanted - above;
                        break;
                    }
                    above += count;
                }
            }
        }
        __syncthreads();
        // Fewer than are wanted: nobody has to go. Behind the first digit there are always enough.
        if (bound == 256) return;
        prefix |= bound << shift, wanted = left;
        __syncthreads();
    }
    // `wanted` of those whose key is `prefix`, the first ones.
    const unsigned span = (neurons + THREADS - 1) / THREADS, begin = min((unsigned)neurons, threadIdx.x * span), end = min((unsigned)neurons, begin + span);
    unsigned level = 0;
    for (unsigned i = begin; i < end; i++) level += keys[i] == prefix;
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
        if (key && (key < prefix || (key == prefix && before++ >= wanted))) taken[i] = 0.0f;
    }
}
