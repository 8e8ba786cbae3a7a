// Columns that an index names, and rows that go to their places (gather_kernel.rs). An index beyond what there is stands for nothing: zeros.

typedef unsigned u32;

// out [t, m] of values [t, n], values of f32 or bf16; a block a token.
extern "C" __global__ void columns(const void* values, const u32* index, void* out, u64 n, u64 m, u64 half) {
    const u64 token = blockIdx.x;
    for (u64 at = threadIdx.x; at < m; at += blockDim.x) {
        const u32 from = index[at];
        store_one(out, token * m + at, half, from < n ? load_one(values, token * n + from, half) : 0.0f);
    }
}

// Row i of out [i, d] is row place[i] of rows [m, d] and, behind those, of more [most - m, d], or that is added to it; a block a row.
extern "C" __global__ void
rows_to_places(const void* rows, const void* more, const u32* place, void* out, u64 m, u64 most, u64 d, u64 half_rows, u64 half_out, u64 add) {
    const bool there = place[blockIdx.x] < most, second = place[blockIdx.x] >= m;
    const void* source = second ? more : rows;
    const u64 from = (place[blockIdx.x] - (second ? m : 0)) * d, to = (u64)blockIdx.x * d;
    if (!there && add) return;
    if (d % 4 == 0) {
        for (u64 at = 4 * threadIdx.x; at < d; at += 4 * blockDim.x) {
            Four four = there ? load(source, from + at, half_rows) : Four{};
            if (add) {
                const Four before = load(out, to + at, half_out);
                for (int k = 0; k < 4; k++) four.x[k] += before.x[k];
            }
            store(out, to + at, half_out, four);
        }
        return;
    }
    for (u64 at = threadIdx.x; at < d; at += blockDim.x) {
        const float value = there ? load_one(source, from + at, half_rows) : 0.0f;
        store_one(out, to + at, half_out, add ? value + load_one(out, to + at, half_out) : value);
    }
}
