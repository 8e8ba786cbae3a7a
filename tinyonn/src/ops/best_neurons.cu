// Of neurons that choose themselves, the `most` best of every row (chosen_neurons.rs has the formula): the others' gates become 0. A block takes a row.
//
// The score of the last one that is taken is found by counting: eleven bits of it at first, ten more where too many have these, and those that have all of them are ranked among
// themselves, the first ones before the others.

const int THREADS = 1024;

extern __shared__ unsigned keys[]; // of all neurons

// Of scores that stand for choice, the `most` best, by the threads of a block.
struct Choice {
    static const unsigned DIGITS = 2048, RANKED = 1024;
    unsigned counts[DIGITS];
    unsigned key_of[RANKED], place_of[RANKED];
    unsigned of_warp[THREADS / 32], digit, left, found, all;

    // The sum of own over the threads before this one, and over all in `all`.
    __device__ unsigned before(unsigned own) {
        unsigned sum = own;
        for (int apart = 1; apart < 32; apart *= 2) {
            const unsigned other = __shfl_up_sync(0xffffffffu, sum, apart);
            if (threadIdx.x % 32 >= apart) sum += other;
        }
        if (threadIdx.x % 32 == 31) of_warp[threadIdx.x / 32] = sum;
        __syncthreads();
        unsigned first = sum - own, total = 0;
        for (int warp = 0; warp < THREADS / 32; warp++) {
            if (warp < threadIdx.x / 32) first += of_warp[warp];
            total += of_warp[warp];
        }
        if (threadIdx.x == 0) all = total;
        __syncthreads();
        return first;
    }

    // Keys of neurons, 0 for those that do not stand for choice: those that are not taken become 0.
    __device__ void choose(unsigned* keys, unsigned neurons, unsigned most) {
        unsigned prefix = 0, wanted = most;
        int shift = 20, bits = 11;
        while (true) {
            for (unsigned at = threadIdx.x; at < DIGITS; at += THREADS) counts[at] = 0;
            if (threadIdx.x == 0) found = 0;
            __syncthreads();
            for (unsigned i = threadIdx.x; i < neurons; i += THREADS) {
                const unsigned key = keys[i];
                if (key && (shift == 20 || key >> (shift + bits) == prefix)) atomicAdd(counts + (key >> shift & ((1u << bits) - 1)), 1);
            }
            __syncthreads();
            // From the highest digit down.
            const unsigned EACH = DIGITS / THREADS, first = DIGITS - EACH * (threadIdx.x + 1);
            unsigned own = 0;
            for (unsigned at = 0; at < EACH; at++) own += counts[first + at];
            unsigned above = before(own);
            if (all <= wanted && shift == 20) return; // all are taken
            if (above < wanted && wanted <= above + own) {
                unsigned at = first + EACH - 1;
                while (above + counts[at] < wanted) above += counts[at--];
                digit = at, left = wanted - above;
            }
            __syncthreads();
            prefix = prefix << bits | digit, wanted = left;
            const unsigned level = counts[digit];
            if (level <= RANKED || shift == 0) break;
            shift -= 10, bits = 10;
            __syncthreads();
        }
        const unsigned level = counts[digit];
        if (level > RANKED) {
            // All of them are alike: the first ones.
            const unsigned span = (neurons + THREADS - 1) / THREADS, begin = min(neurons, threadIdx.x * span), end = min(neurons, begin + span);
            unsigned own = 0;
            for (unsigned i = begin; i < end; i++) own += keys[i] == prefix;
            unsigned ahead = before(own);
            for (unsigned i = begin; i < end; i++) {
                if (keys[i] < prefix || (keys[i] == prefix && ahead++ >= wanted)) keys[i] = 0;
            }
            __syncthreads();
            return;
        }
        for (unsigned i = threadIdx.x; i < neurons; i += THREADS) {
            const unsigned key = keys[i], high = key >> shift;
            if (!key || high > prefix) continue;
            if (high < prefix) {
                keys[i] = 0;
            } else {
                const unsigned at = atomicAdd(&found, 1);
                key_of[at] = key, place_of[at] = i;
            }
        }
        __syncthreads();
        // Several lanes share a rank.
        unsigned share = 1;
        while (share < 32 && 2 * share * level <= THREADS) share *= 2;
        for (unsigned from = 0; from < level; from += THREADS / share) {
            const unsigned own = from + threadIdx.x / share;
            unsigned ahead = 0;
            if (own < level) {
                const unsigned key = key_of[own], place = place_of[own];
                for (unsigned other = threadIdx.x % share; other < level; other += share) {
                    const unsigned of = key_of[other];
                    ahead += of > key || (of == key && place_of[other] < place);
                }
            }
            for (int apart = share / 2; apart > 0; apart /= 2) ahead += __shfl_xor_sync(0xffffffffu, ahead, apart);
            if (own < level && threadIdx.x % share == 0 && ahead >= wanted) keys[place_of[own]] = 0;
        }
        __syncthreads();
    }
};
// A score as a number of the same order, above 0 if it is taken at all.
__device__ unsigned as_key(float score, float taken) { return taken != 0.0f ? __float_as_uint(score) + 1 : 0; }

extern "C" __global__ void __launch_bounds__(THREADS) best_neurons(const float* scores, float* taken, u64 neurons, u64 most) {
    __shared__ Choice choice;
    let_the_next_launch_begin();
    wait_for_the_launch_before();
    scores += blockIdx.x * neurons;
    taken += blockIdx.x * neurons;
#pragma unroll 8
    for (unsigned i = threadIdx.x; i < neurons; i += THREADS) keys[i] = as_key(scores[i], taken[i]);
    __syncthreads();
    choice.choose(keys, neurons, most);
    for (unsigned i = threadIdx.x; i < neurons; i += THREADS) {
        if (!keys[i]) taken[i] = 0.0f;
    }
}
