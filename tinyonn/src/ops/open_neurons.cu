// Which neurons take part, as bits, and how many of them stand before each word of bits: what a block has found before it reads their lines.

struct Open {
    unsigned *bits, *before; // [words] each
    unsigned words, count;

    // The neuron that j others which take part stand before.
    __device__ unsigned operator()(unsigned j) const {
        unsigned low = 0, high = words; // the last word with `before` at most j
        while (high - low > 1) {
            const unsigned middle = (low + high) / 2;
            if (before[middle] <= j) low = middle;
            else high = middle;
        }
        unsigned word = bits[low], left = j - before[low], at = 32 * low;
#pragma unroll
        for (int half = 16; half > 0; half /= 2) {
            const unsigned lower = word & ((1u << half) - 1), count = __popc(lower);
            const bool above = left >= count;
            left -= above ? count : 0;
            at += above ? half : 0;
            word = above ? word >> half : lower;
        }
        return at;
    }

    __device__ bool has(unsigned i) const { return bits[i / 32] >> i % 32 & 1; }

    // Of bits that are there.
    template <int THREADS>
    __device__ void add_up() {
        __shared__ unsigned of_warp[THREADS / 32];
        const unsigned per = (words + THREADS - 1) / THREADS, from = min(words, threadIdx.x * per), to = min(words, from + per), lane = threadIdx.x % 32;
        unsigned own = 0;
        for (unsigned word = from; word < to; word++) own += __popc(bits[word]);
        unsigned sum = own;
        for (int apart = 1; apart < 32; apart *= 2) {
            const unsigned other = __shfl_up_sync(0xffffffffu, sum, apart);
            if (lane >= apart) sum += other;
        }
        if (lane == 31) of_warp[threadIdx.x / 32] = sum;
        __syncthreads();
        count = 0;
        unsigned first = sum - own;
        for (int warp = 0; warp < THREADS / 32; warp++) {
            if (warp < threadIdx.x / 32) first += of_warp[warp];
            count += of_warp[warp];
        }
        for (unsigned word = from; word < to; word++) {
            before[word] = first;
            first += __popc(bits[word]);
        }
        __syncthreads();
    }

    // Those for which `is(i)`.
    template <int THREADS, class Is>
    __device__ void find(unsigned neurons, Is is) {
#pragma unroll 4
        for (unsigned word = threadIdx.x / 32; word < words; word += THREADS / 32) {
            const unsigned i = 32 * word + threadIdx.x % 32, found = __ballot_sync(0xffffffffu, i < neurons && is(i));
            if (threadIdx.x % 32 == 0) bits[word] = found;
        }
        __syncthreads();
        add_up<THREADS>();
    }
};
