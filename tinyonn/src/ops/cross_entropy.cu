// Cross-entropy of rows of logits and its derivative (cross_entropy.rs has the formulas). A block of 256 threads takes a row of v logits;
// a target that is none of them is no target.

// The losses, and of every row that has a target max x and Σ exp(x − max).
extern "C" __global__ void cross_entropy(const void* logits, const unsigned* targets, float* losses, float* peaks, u64 v, u64 half) {
    const unsigned target = targets[blockIdx.x];
    if (target >= v) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
        return;
    }
    const u64 at = blockIdx.x * v;
    const Peak peak = peak_of_row(logits, at, v, half);
    if (threadIdx.x != 0) return;
    losses[blockIdx.x] = peak.max + logf(peak.sum) - load_one(logits, at + target, half);
    peaks[2 * blockIdx.x] = peak.max;
    peaks[2 * blockIdx.x + 1] = peak.sum;
}

// The gradient takes the place of the logits.
extern "C" __global__ void cross_entropy_gradient(void* logits, const unsigned* targets, const float* peaks, const float* dlosses, u64 v,
                                                  u64 half) {
    const unsigned target = targets[blockIdx.x];
    const u64 at = blockIdx.x * v, fours = v % 4 == 0 ? v : 0;
    const bool none = target >= v;
    const float dloss = none ? 0.0f : dlosses[blockIdx.x];
    // Without a target nothing of the row is looked at.
    const float max = none ? 0.0f : peaks[2 * blockIdx.x], scale = none ? 0.0f : dloss / peaks[2 * blockIdx.x + 1];
    for (u64 i = 4 * threadIdx.x; i < fours; i += 1024) {
        Four x = load(logits, at + i, half);
        for (int k = 0; k < 4; k++) {
            x.x[k] = none ? 0.0f : power(x.x[k] - max) * scale - (i + k == target ? dloss : 0.0f);
        }
        store(logits, at + i, half, x);
    }
    for (u64 i = fours + threadIdx.x; i < v; i += 256) {
        const float x = none ? 0.0f : power(load_one(logits, at + i, half) - max) * scale;
        store_one(logits, at + i, half, x - (i == target ? dloss : 0.0f));
    }
}
