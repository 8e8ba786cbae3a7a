// The norm of many gradients, in one launch and always in the same order.
//
// A block sums the squares of PART values of one gradient in f64; the block that ends last adds the sums up.

const u64 PART = 16384; // grad_norm.rs counts blocks by it

// Four words of eight bytes, as grad_norm.rs writes them.
struct Gradient {
    const void* values;
    u64 count;
    u64 first; // its first block
    u64 half;  // 1: bf16, 0: f32
};

// The sum over a block's threads, in thread 0; a tree, so that the order is fixed.
__device__ double summed(double x) {
    __shared__ double sums[256];
    sums[threadIdx.x] = x;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

extern "C" __global__ void grad_norm(const Gradient* table, unsigned gradients, double* parts, unsigned* done, double* norm) {
    unsigned low = 0, high = gradients - 1;
    while (low < high) {
        unsigned middle = (low + high + 1) / 2;
        if (table[middle].first <= blockIdx.x) low = middle;
        else high = middle - 1;
    }
    const Gradient of = table[low];
    const u64 begin = (blockIdx.x - of.first) * PART, end = min(begin + PART, of.count);
    double sum = 0.0;
    // A gradient begins at a multiple of 256 bytes, and a part at a multiple of four values.
    const u64 fours = begin + (end - begin) / 4 * 4;
    for (u64 i = begin + 4 * threadIdx.x; i < fours; i += 4 * blockDim.x) {
        const Four x = load(of.values, i, of.half);
        for (int k = 0; k < 4; k++) sum += (double)x.x[k] * (double)x.x[k];
    }
    for (u64 i = fours + threadIdx.x; i < end; i += blockDim.x) {
        const float x = load_one(of.values, i, of.half);
        sum += (double)x * (double)x;
    }
    sum = summed(sum);
    __shared__ bool last;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    sum = 0.0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += ((volatile double*)parts)[i];
    sum = summed(sum);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}
