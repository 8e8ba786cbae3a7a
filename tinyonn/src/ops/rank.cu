// How many choices of a router beat each (rank.rs): a thread a choice, which looks at all of its router's.

// One zero of two; what is no number beats all others.
__device__ float as_key(float x) { return x == x ? x + 0.0f : __int_as_float(0x7f800000); }

extern "C" __global__ void ranks(const float* keys, float* ranks, u64 n, u64 choices) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u64 first = i / choices * choices;
    const float own = as_key(keys[i]);
    unsigned ahead = 0;
    for (u64 j = first; j < first + choices; j++) {
        const float other = as_key(keys[j]);
        ahead += other > own || (other == own && j < i);
    }
    ranks[i] = ahead;
}
