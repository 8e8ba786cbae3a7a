// What every kernel begins with: numbers stored as f32 or bf16 and computed with as f32, and sums whose order is fixed.

typedef unsigned long long u64;

__device__ float widened(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

// To nearest, ties to even; what is no number stays none.
__device__ unsigned short rounded(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// As a value of that type would be.
__device__ float as_stored(float x, bool half) { return half ? widened(rounded(x)) : x; }

struct Four { float x[4]; };

__device__ Four load(const void* from, u64 at, bool half) {
    if (half) {
        ushort4 h = *(const ushort4*)((const unsigned short*)from + at);
        return {widened(h.x), widened(h.y), widened(h.z), widened(h.w)};
    }
    float4 f = *(const float4*)((const float*)from + at);
    return {f.x, f.y, f.z, f.w};
}

__device__ void store(void* to, u64 at, bool half, Four four) {
    const float* x = four.x;
    if (half) {
        *(ushort4*)((unsigned short*)to + at) = {rounded(x[0]), rounded(x[1]), rounded(x[2]), rounded(x[3])};
    } else {
        *(float4*)((float*)to + at) = {x[0], x[1], x[2], x[3]};
    }
}

__device__ float load_one(const void* from, u64 at, bool half) {
    return half ? widened(((const unsigned short*)from)[at]) : ((const float*)from)[at];
}

__device__ void store_one(void* to, u64 at, bool half, float x) {
    if (half) ((unsigned short*)to)[at] = rounded(x);
    else ((float*)to)[at] = x;
}

// The sum over a warp, in every lane.
__device__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
