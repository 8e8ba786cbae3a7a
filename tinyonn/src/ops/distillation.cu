// The divergence of a student's next token from a teacher's and its derivative by the student's logits (distillation.rs has the formulas). A block of 256 threads
// takes a row of v logits of each.

// KL of each row; where there are weights, weight · (q − p) takes the place of the student's logits.
extern "C" __global__ void divergence(void* student, const void* teacher, const float* weights, float* divergences, u64 v, u64 half) {
    __shared__ float sums[256];
    const u64 at = blockIdx.x * v, fours = v % 4 == 0 ? v : 0;
    const Peak own = peak_of_row(student, at, v, half);
    __syncthreads();
    const Peak aim = peak_of_row(teacher, at, v, half);
    const float log_own = own.max + logf(own.sum), log_aim = aim.max + logf(aim.sum);
    const float weight = weights ? weights[blockIdx.x] : 0.0f;
    float sum = 0.0f;
    for (u64 i = 4 * threadIdx.x; i < fours; i += 1024) {
        Four x = load(student, at + i, half);
        const Four y = load(teacher, at + i, half);
        for (int k = 0; k < 4; k++) {
            const float log_q = x.x[k] - log_own, log_p = y.x[k] - log_aim, p = power(log_p);
            sum += p * (log_p - log_q);
            x.x[k] = weight * (power(log_q) - p);
        }
        if (weights) store(student, at + i, half, x);
    }
    for (u64 i = fours + threadIdx.x; i < v; i += 256) {
        const float log_q = load_one(student, at + i, half) - log_own, log_p = load_one(teacher, at + i, half) - log_aim, p = power(log_p);
        sum += p * (log_p - log_q);
        if (weights) store_one(student, at + i, half, weight * (power(log_q) - p));
    }
    sums[threadIdx.x] = sum;
    for (int threads = 128; threads > 0; threads /= 2) {
        __syncthreads();
        if (threadIdx.x < threads) sums[threadIdx.x] += sums[threadIdx.x + threads];
    }
    if (threadIdx.x == 0) divergences[blockIdx.x] = sums[0];
}
