// What every kernel begins with: numbers stored as f32 or bf16 and computed with as f32, and sums whose order is fixed.

typedef unsigned long long u64;

__device__ float widened(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

// To nearest, ties to even; what is no number stays none.
__device__ unsigned short rounded(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
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

// Eight values stored as bf16, or four as f32.
template <bool HALF>
struct Chunk {
    static const int N = HALF ? 8 : 4;
    unsigned words[4];

    __device__ float operator[](int k) const {
        if (!HALF) return __uint_as_float(words[k]);
        const unsigned word = words[k / 2];
        return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
    }

    // Chunk `at` behind `from`; zeros unless `there`.
    __device__ static Chunk read(const void* from, u64 at, bool there) {
        if (!there) return {{0, 0, 0, 0}};
        const uint4 four = ((const uint4*)from)[at];
        return {{four.x, four.y, four.z, four.w}};
    }

    __device__ void write(void* to, u64 at) const { ((uint4*)to)[at] = make_uint4(words[0], words[1], words[2], words[3]); }

    // Values as they are stored.
    __device__ static Chunk of(const float (&x)[N]) {
        Chunk chunk;
        for (int i = 0; i < 4; i++) {
            if (HALF) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(chunk.words[i]) : "f"(x[(2 * i + 1) % N]), "f"(x[2 * i % N]));
            else chunk.words[i] = __float_as_uint(x[i]);
        }
        return chunk;
    }
};

// The sum over a warp, in every lane.
__device__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// The sum of a column of parts [count, width], in one order: a block takes COLUMNS of them, 256 / COLUMNS threads of each a share of the parts. The sum is that of
// the first thread of its column, threadIdx.x < COLUMNS; all threads of the block come here.
template <int COLUMNS>
__device__ float column_sum(const float* parts, u64 count, u64 width, u64 column) {
    const int SHARES = 256 / COLUMNS;
    __shared__ float sums[SHARES][COLUMNS];
    const unsigned share = threadIdx.x / COLUMNS;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (u64 part = share; part < count; part += SHARES) sum += parts[part * width + column];
    }
    sums[share][threadIdx.x % COLUMNS] = sum;
    __syncthreads();
    if (share > 0) return sum;
    for (int other = 1; other < SHARES; other++) sum += sums[other][threadIdx.x];
    return sum;
}
