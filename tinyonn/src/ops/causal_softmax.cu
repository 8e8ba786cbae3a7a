// The softmax of rows of scores that see their own position and those before it, and its derivative (causal_softmax.rs has the formulas). A warp takes a row of
// `keys` scores; row r is of query r mod `queries`, the last of which sees all keys.

__device__ float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

// The row of this warp, and how many keys it sees: none of a warp without a row.
__device__ u64 seen_by(u64 row, u64 rows, u64 queries, u64 keys) { return row < rows ? keys - queries + row % queries + 1 : 0; }

extern "C" __global__ void causal_softmax(const float* scores, float* p, u64 rows, u64 queries, u64 keys, float scale) {
    const u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32, seen = seen_by(row, rows, queries, keys);
    if (seen == 0) return;
    const unsigned lane = threadIdx.x % 32;
    const float* from = scores + row * keys;
    float* to = p + row * keys;
    float most = __int_as_float(0xff800000);
#pragma unroll 4
    for (u64 i = lane; i < seen; i += 32) most = fmaxf(most, scale * from[i]);
    most = warp_max(most);
    float sum = 0.0f;
#pragma unroll 4
    for (u64 i = lane; i < seen; i += 32) sum += exp2f((scale * from[i] - most) * 1.4426950408889634f);
    sum = warp_sum(sum);
#pragma unroll 4
    for (u64 i = lane; i < keys; i += 32) to[i] = i < seen ? exp2f((scale * from[i] - most) * 1.4426950408889634f) / sum : 0.0f;
}

extern "C" __global__ void causal_softmax_gradient(const float* p, const float* dp, float* ds, u64 rows, u64 queries, u64 keys, float scale) {
    const u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32, seen = seen_by(row, rows, queries, keys);
    if (seen == 0) return;
    const unsigned lane = threadIdx.x % 32;
    p += row * keys, dp += row * keys, ds += row * keys;
    float sum = 0.0f;
#pragma unroll 4
    for (u64 i = lane; i < seen; i += 32) sum += p[i] * dp[i];
    sum = warp_sum(sum);
#pragma unroll 4
    for (u64 i = lane; i < keys; i += 32) ds[i] = i < seen ? scale * p[i] * (dp[i] - sum) : 0.0f;
}
