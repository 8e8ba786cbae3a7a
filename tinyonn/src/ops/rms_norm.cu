// Root-mean-square normalisation and its derivative (rms_norm.rs has the formula). A warp takes a row of d values.
//
// Eight warps a block. Where d is no multiple of four, values are read one by one.

const u64 WARPS = 8;

struct Row {
    u64 at, fours, lane;

    // The warp's row of `rows`, from its first value on.
    __device__ Row(u64 d) {
        at = (blockIdx.x * WARPS + threadIdx.x / 32) * d;
        fours = d % 4 == 0 ? d : 0;
        lane = threadIdx.x % 32;
    }
};

__device__ bool beyond(u64 rows) { return blockIdx.x * WARPS + threadIdx.x / 32 >= rows; }

extern "C" __global__ void rms_norm_forward(const void* x, const void* w, void* y, u64 rows, u64 d, float eps, u64 half) {
    if (beyond(rows)) return;
    const Row row(d);
    float squares = 0.0f;
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        const Four a = load(x, row.at + i, half);
        for (int k = 0; k < 4; k++) squares += a.x[k] * a.x[k];
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        const float a = load_one(x, row.at + i, half);
        squares += a * a;
    }
    const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps);
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        Four a = load(x, row.at + i, half);
        const Four b = load(w, i, half);
        for (int k = 0; k < 4; k++) a.x[k] = as_stored(a.x[k] * r, half) * b.x[k];
        store(y, row.at + i, half, a);
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        store_one(y, row.at + i, half, as_stored(load_one(x, row.at + i, half) * r, half) * load_one(w, i, half));
    }
}

// dx, and the inverse root of each row.
extern "C" __global__ void rms_norm_input(const void* x, const void* w, const void* dy, void* dx, float* roots, u64 rows,
                                          u64 d, float eps, u64 half) {
    if (beyond(rows)) return;
    const Row row(d);
    float squares = 0.0f, products = 0.0f;
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        const Four a = load(x, row.at + i, half), b = load(w, i, half), g = load(dy, row.at + i, half);
        for (int k = 0; k < 4; k++) {
            squares += a.x[k] * a.x[k];
            products += g.x[k] * b.x[k] * a.x[k];
        }
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        const float a = load_one(x, row.at + i, half);
        squares += a * a;
        products += load_one(dy, row.at + i, half) * load_one(w, i, half) * a;
    }
    const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps);
    const float mean = warp_sum(products) * r / d;
    if (row.lane == 0) roots[row.at / d] = r;
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        const Four b = load(w, i, half), g = load(dy, row.at + i, half);
        Four a = load(x, row.at + i, half);
        for (int k = 0; k < 4; k++) a.x[k] = r * (g.x[k] * b.x[k] - a.x[k] * r * mean);
        store(dx, row.at + i, half, a);
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        const float g = load_one(dy, row.at + i, half) * load_one(w, i, half);
        store_one(dx, row.at + i, half, r * (g - load_one(x, row.at + i, half) * r * mean));
    }
}

// Σ over a block's rows of dy ⊙ x r, a row of `parts` a block. Its 256 threads are `columns` side by side, the rest of them behind each other.
extern "C" __global__ void rms_norm_weight(const void* x, const void* dy, const float* roots, float* parts, u64 rows, u64 d,
                                           u64 rows_of_block, u64 columns, u64 half) {
    __shared__ float sums[256];
    const u64 first = blockIdx.x * rows_of_block, end = min(first + rows_of_block, rows);
    const u64 column = threadIdx.x % columns, behind = threadIdx.x / columns, depth = 256 / columns;
    for (u64 from = 0; from < d; from += columns) {
        const u64 c = from + column;
        float sum = 0.0f;
        if (c < d) {
            for (u64 row = first + behind; row < end; row += depth) {
                sum += load_one(dy, row * d + c, half) * load_one(x, row * d + c, half) * roots[row];
            }
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (behind == 0 && c < d) {
            for (u64 other = 1; other < depth; other++) sum += sums[other * columns + column];
            parts[blockIdx.x * d + c] = sum;
        }
        __syncthreads();
    }
}

// The sum of the rows of `parts`, in their order: a warp takes 32 columns, eight warps of a block an eighth of the rows each.
extern "C" __global__ void rms_norm_sum(const float* parts, float* dw, u64 count, u64 d) {
    __shared__ float sums[256];
    const u64 c = blockIdx.x * 32 + threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0.0f;
    if (c < d) {
        for (u64 part = warp; part < count; part += WARPS) sum += parts[part * d + c];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && c < d) {
        for (u64 other = 1; other < WARPS; other++) sum += sums[other * 32 + threadIdx.x];
        dw[c] = sum;
    }
}
