// The maximum of a row of numbers and the sum of their exponentials from there, found together by a block of 256 threads.

#define NEVER __int_as_float(0xff800000) // −∞

__device__ float power(float x) { return exp2f(x * 1.4426950408889634f); }

// max x and Σ exp(x − max) of what a thread has seen.
struct Peak {
    float max, sum;

    // One comparison and one rescaling for four values.
    __device__ void see(const Four& x) {
        const float most = fmaxf(fmaxf(x.x[0], x.x[1]), fmaxf(x.x[2], x.x[3]));
        if (most > max) {
            sum *= power(max - most);
            max = most;
        }
        // −∞ so far: nothing is added, unless a number that is none makes the sum none.
        for (int k = 0; k < 4; k++) sum += x.x[k] == NEVER ? 0.0f : power(x.x[k] - max);
    }

    __device__ void see(float x) { see(Four{{x, NEVER, NEVER, NEVER}}); }

    __device__ void join(Peak other) {
        if (other.sum == 0.0f) return;
        if (sum == 0.0f) { *this = other; return; }
        const float most = fmaxf(max, other.max);
        sum = sum * power(max - most) + other.sum * power(other.max - most);
        max = most;
    }
};

// Of the block's row, in every thread; joined as a tree, so that the order is fixed. A number that is none makes all of it none.
__device__ Peak peak_of_row(const void* logits, u64 at, u64 v, bool half) {
    __shared__ Peak peaks[256];
    Peak own = {NEVER, 0.0f};
    const u64 fours = v % 4 == 0 ? v : 0;
    for (u64 i = 4 * threadIdx.x; i < fours; i += 1024) {
        own.see(load(logits, at + i, half));
    }
    for (u64 i = fours + threadIdx.x; i < v; i += 256) own.see(load_one(logits, at + i, half));
    peaks[threadIdx.x] = own;
    for (int threads = 128; threads > 0; threads /= 2) {
        __syncthreads();
        if (threadIdx.x < threads) peaks[threadIdx.x].join(peaks[threadIdx.x + threads]);
    }
    __syncthreads();
    return peaks[0];
}
