// Means of segments of tokens and their derivative (segment_means.rs has the formulas).
//
// Legend: values [B, T, d], f32 or bf16; K segments of `reads` tokens from the beginning of each sequence; means [B · K, d], f32.

const int COLUMNS = 256; // of a block: 64 threads of four values, on four shares of a segment's tokens

extern "C" __global__ void __launch_bounds__(256)
segment_means(const void* values, float* means, u64 length, u64 d, u64 segments, u64 reads, u64 half) {
    __shared__ Four parts[4][COLUMNS / 4];
    const u64 column = (u64)blockIdx.x * COLUMNS + threadIdx.x % 64 * 4, sequence = blockIdx.y / segments, segment = blockIdx.y % segments;
    const int share = threadIdx.x / 64;
    const u64 count = column < d ? min((u64)4, d - column) : 0, first = sequence * length + segment * reads;
    const bool four = d % 4 == 0;
    Four sum = {};
#pragma unroll 8
    for (u64 t = share * reads / 4; t < (share + 1) * reads / 4; t++) {
        const u64 at = (first + t) * d + column;
        if (four && count) {
            const Four value = load(values, at, half);
            for (int k = 0; k < 4; k++) sum.x[k] += value.x[k];
        } else {
            for (u64 k = 0; k < count; k++) sum.x[k] += load_one(values, at + k, half);
        }
    }
    parts[share][threadIdx.x % 64] = sum;
    __syncthreads();
    if (share > 0) return;
    for (u64 k = 0; k < count; k++) {
        float all = 0.0f;
        for (int other = 0; other < 4; other++) all += parts[other][threadIdx.x].x[k];
        means[blockIdx.y * d + column + k] = all / reads;
    }
}

// A block a token.
extern "C" __global__ void
segment_spread(const float* means, void* values, u64 length, u64 d, u64 segments, u64 reads, u64 half) {
    const u64 t = blockIdx.x % length, sequence = blockIdx.x / length, segment = t / reads;
    const float share = 1.0f / reads;
    for (u64 at = threadIdx.x; at < d; at += blockDim.x) {
        const float value = segment < segments ? means[(sequence * segments + segment) * d + at] * share : 0.0f;
        store_one(values, blockIdx.x * d + at, half, value);
    }
}
