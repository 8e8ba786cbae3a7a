// Cross-entropy of rows of logits and its derivative (cross_entropy.rs has the formulas). A block of 256 threads takes a row of v logits;
// a target that is none of them is no target.

#define NEVER __int_as_float(0xff800000) // −∞

// max x and Σ exp(x − max) of what a thread has seen.
struct Peak {
    float max, sum;

    __device__ void see(float x) {
        if (x == NEVER) return;
        if (x > max) {
            sum = sum * expf(max - x) + 1.0f;
            max = x;
        } else {
            sum += expf(x - max);
        }
    }

    __device__ void join(Peak other) {
        if (other.sum == 0.0f) return;
        if (sum == 0.0f) { *this = other; return; }
        const float most = fmaxf(max, other.max);
        sum = sum * expf(max - most) + other.sum * expf(other.max - most);
        max = most;
    }
};

// Of the block's row, in every thread; joined as a tree, so that the order is fixed. A number that is none makes all of it none.
__device__ Peak peak_of_row(const void* logits, u64 at, u64 v, bool half) {
    __shared__ Peak peaks[256];
    Peak own = {NEVER, 0.0f};
    const u64 fours = v % 4 == 0 ? v : 0;
    for (u64 i = 4 * threadIdx.x; i < fours; i += 1024) {
        const Four x = load(logits, at + i, half);
        for (int k = 0; k < 4; k++) own.see(x.x[k]);
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

extern "C" __global__ void cross_entropy(const void* logits, const unsigned* targets, float* losses, u64 v, u64 half) {
    const unsigned target = targets[blockIdx.x];
    if (target >= v) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
        return;
    }
    const u64 at = blockIdx.x * v;
    const Peak peak = peak_of_row(logits, at, v, half);
    if (threadIdx.x == 0) losses[blockIdx.x] = peak.max + logf(peak.sum) - load_one(logits, at + target, half);
}

// The gradient takes the place of the logits.
extern "C" __global__ void cross_entropy_gradient(void* logits, const unsigned* targets, const float* dlosses, u64 v, u64 half) {
    const unsigned target = targets[blockIdx.x];
    const u64 at = blockIdx.x * v, fours = v % 4 == 0 ? v : 0;
    const bool none = target >= v;
    const float dloss = none ? 0.0f : dlosses[blockIdx.x];
    // Without a target nothing of the row is looked at.
    const Peak peak = none ? Peak{0.0f, 1.0f} : peak_of_row(logits, at, v, half);
    const float scale = dloss / peak.sum;
    for (u64 i = 4 * threadIdx.x; i < fours; i += 1024) {
        Four x = load(logits, at + i, half);
        for (int k = 0; k < 4; k++) {
            x.x[k] = none ? 0.0f : expf(x.x[k] - peak.max) * scale - (i + k == target ? dloss : 0.0f);
        }
        store(logits, at + i, half, x);
    }
    for (u64 i = fours + threadIdx.x; i < v; i += 256) {
        const float x = none ? 0.0f : expf(load_one(logits, at + i, half) - peak.max) * scale;
        store_one(logits, at + i, half, x - (i == target ? dloss : 0.0f));
    }
}
