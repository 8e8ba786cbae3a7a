// How much work gates give (open_gates.rs has the whole): tokens by expert, then by how many experts they take, [experts + experts + 1].
//
// `tokens` of a decision, or one each. Sums of whole numbers, which f32 holds: their order changes nothing.

const unsigned DECISIONS = 64; // of a block

extern "C" __global__ void __launch_bounds__(256)
open_gates(const void* gates, const float* tokens, float* parts, u64 decisions, u64 experts, u64 half) {
    __shared__ unsigned taken[DECISIONS];
    const u64 first = (u64)blockIdx.x * DECISIONS;
    const unsigned here = min((u64)DECISIONS, decisions - first);
    for (unsigned own = threadIdx.x / 32; own < here; own += 8) {
        unsigned count = 0;
        for (u64 n = threadIdx.x % 32; n < experts; n += 32) count += load_one(gates, (first + own) * experts + n, half) != 0.0f;
        for (int lanes = 16; lanes > 0; lanes /= 2) count += __shfl_xor_sync(0xffffffffu, count, lanes);
        if (threadIdx.x % 32 == 0) taken[own] = count;
    }
    __syncthreads();
    float* out = parts + blockIdx.x * (2 * experts + 1);
    for (u64 n = threadIdx.x; n <= experts; n += 256) {
        float own = 0.0f, counted = 0.0f;
#pragma unroll 8
        for (unsigned at = 0; at < here; at++) {
            const float weight = tokens ? tokens[first + at] : 1.0f;
            if (n < experts && load_one(gates, (first + at) * experts + n, half) != 0.0f) own += weight;
            if (taken[at] == n) counted += weight;
        }
        if (n < experts) out[n] = own;
        out[experts + n] = counted;
    }
}

// The sum of the rows of `parts`: a block takes 32 columns, eight threads of each an eighth of the rows.
extern "C" __global__ void __launch_bounds__(256) open_gates_sum(const float* parts, float* sums, u64 count, u64 columns) {
    __shared__ float of_thread[8][32];
    const u64 column = (u64)blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0.0f;
    for (u64 part = threadIdx.x / 32; part < count && column < columns; part += 8) sum += parts[part * columns + column];
    of_thread[threadIdx.x / 32][threadIdx.x % 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || column >= columns) return;
    for (int other = 1; other < 8; other++) sum += of_thread[other][threadIdx.x];
    sums[column] = sum;
}
