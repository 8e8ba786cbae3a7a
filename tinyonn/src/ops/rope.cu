// Rotary position embedding (rope.rs has the formula): a thread turns one pair of a head, angles in the type of x as the plain form has them.

extern "C" __global__ void rope(const void* x, const float* cosines, const float* sines, void* y, u64 pairs, u64 positions,
                                u64 heads, u64 half_dim, float sign, u64 half) {
    const u64 pair = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    const u64 j = pair % half_dim, head = pair / half_dim, position = head / heads % positions;
    const float c = as_stored(cosines[position * half_dim + j], half);
    const float s = sign * as_stored(sines[position * half_dim + j], half);
    const u64 first = head * 2 * half_dim + j, second = first + half_dim;
    const float a = load_one(x, first, half), b = load_one(x, second, half);
    store_one(y, first, half, a * c - b * s);
    store_one(y, second, half, b * c + a * s);
}
