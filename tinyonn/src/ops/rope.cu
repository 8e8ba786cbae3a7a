// Rotary position embedding (rope.rs has the formula): a thread turns four pairs of a head, or one where half a head is no multiple of four; angles in
// the type of x as the plain form has them.

extern "C" __global__ void rope(const void* x, const void* cosines, const void* sines, void* y, u64 all_pairs, u64 all_positions, u64 all_heads,
                                u64 pairs_of_a_head, float sign, u64 half, u64 half_angles) {
    // Divisions of 64 bits would take longer than the memory does.
    const unsigned pairs = all_pairs, positions = all_positions, heads = all_heads, half_dim = pairs_of_a_head;
    const unsigned step = half_dim % 4 == 0 ? 4 : 1;
    const unsigned pair = (blockIdx.x * blockDim.x + threadIdx.x) * step;
    if (pair >= pairs) return;
    const unsigned head = pair / half_dim, j = pair - head * half_dim, position = head / heads % positions;
    const u64 first = (u64)head * 2 * half_dim + j, second = first + half_dim, angle = (u64)position * half_dim + j;
    if (step == 4) {
        const Four c = load(cosines, angle, half_angles), s = load(sines, angle, half_angles);
        Four a = load(x, first, half), b = load(x, second, half);
        for (int k = 0; k < 4; k++) {
            const float cosine = as_stored(c.x[k], half), sine = sign * as_stored(s.x[k], half), other = b.x[k];
            b.x[k] = other * cosine + a.x[k] * sine;
            a.x[k] = a.x[k] * cosine - other * sine;
        }
        store(y, first, half, a);
        store(y, second, half, b);
        return;
    }
    const float c = as_stored(load_one(cosines, angle, half_angles), half);
    const float s = sign * as_stored(load_one(sines, angle, half_angles), half);
    const float a = load_one(x, first, half), b = load_one(x, second, half);
    store_one(y, first, half, a * c - b * s);
    store_one(y, second, half, b * c + a * s);
}
