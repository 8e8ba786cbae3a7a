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

// y, the norm of x, or of the sum of x and `also`, which is stored then.
extern "C" __global__ void rms_norm_forward(const void* x, const void* also, const void* w, void* sum, void* y, u64 rows, u64 d, float eps,
                                            u64 half) {
    if (beyond(rows)) return;
    const Row row(d);
    float squares = 0.0f;
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        Four a = load(x, row.at + i, half);
        if (also) {
            const Four b = load(also, row.at + i, half);
            for (int k = 0; k < 4; k++) a.x[k] = as_stored(a.x[k] + b.x[k], half);
            store(sum, row.at + i, half, a);
        }
        for (int k = 0; k < 4; k++) squares += a.x[k] * a.x[k];
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        float a = load_one(x, row.at + i, half);
        if (also) {
            a = as_stored(a + load_one(also, row.at + i, half), half);
            store_one(sum, row.at + i, half, a);
        }
        squares += a * a;
    }
    const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps);
    // Every lane reads what it has written itself.
    const void* normed = also ? sum : x;
    for (u64 i = 4 * row.lane; i < row.fours; i += 128) {
        Four a = load(normed, row.at + i, half);
        const Four b = load(w, i, half);
        for (int k = 0; k < 4; k++) a.x[k] = as_stored(a.x[k] * r, half) * b.x[k];
        store(y, row.at + i, half, a);
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        store_one(y, row.at + i, half, as_stored(load_one(normed, row.at + i, half) * r, half) * load_one(w, i, half));
    }
}

// dx, or dx + `also`, and the inverse root of each row.
extern "C" __global__ void rms_norm_input(const void* x, const void* w, const void* dy, const void* also, void* dx, float* roots, u64 rows,
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
        if (also) {
            const Four c = load(also, row.at + i, half);
            for (int k = 0; k < 4; k++) a.x[k] += c.x[k];
        }
        store(dx, row.at + i, half, a);
    }
    for (u64 i = row.fours + row.lane; i < d; i += 32) {
        const float g = load_one(dy, row.at + i, half) * load_one(w, i, half);
        const float c = also ? load_one(also, row.at + i, half) : 0.0f;
        store_one(dx, row.at + i, half, c + r * (g - load_one(x, row.at + i, half) * r * mean));
    }
}

// Σ over a block's rows of dy ⊙ x r, a row of `parts` a block. A thread takes four columns, or one where d is no multiple of four; the block's
// 256 threads are `columns` side by side, the rest of them behind each other.
extern "C" __global__ void rms_norm_weight(const void* x, const void* dy, const float* roots, float* parts, u64 rows, u64 d,
                                           u64 rows_of_block, u64 columns, u64 half) {
    __shared__ float4 sums[256];
    const u64 first = blockIdx.x * rows_of_block, end = min(first + rows_of_block, rows);
    const u64 column = threadIdx.x % columns, behind = threadIdx.x / columns, depth = 256 / columns;
    const u64 wide = d % 4 == 0 ? 4 : 1;
    for (u64 from = 0; from < d; from += columns * wide) {
        const u64 c = from + column * wide;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (c < d && wide == 4) {
#pragma unroll 4
            for (u64 row = first + behind; row < end; row += depth) {
                const Four a = load(x, row * d + c, half), b = load(dy, row * d + c, half);
                const float r = roots[row];
                sum.x += a.x[0] * b.x[0] * r;
                sum.y += a.x[1] * b.x[1] * r;
                sum.z += a.x[2] * b.x[2] * r;
                sum.w += a.x[3] * b.x[3] * r;
            }
        } else if (c < d) {
            for (u64 row = first + behind; row < end; row += depth) {
                sum.x += load_one(dy, row * d + c, half) * load_one(x, row * d + c, half) * roots[row];
            }
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (behind == 0 && c < d) {
            for (u64 other = 1; other < depth; other++) {
                const float4 more = sums[other * columns + column];
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            if (wide == 4) *(float4*)(parts + blockIdx.x * d + c) = sum;
            else parts[blockIdx.x * d + c] = sum.x;
        }
        __syncthreads();
    }
}

// The sum of the rows of `parts`, in one order, put or added where the gradient lies: a block takes eight columns, 32 threads of each a 32nd of the rows. Of
// two such sums the second is that of the blocks behind it.
extern "C" __global__ void __launch_bounds__(256)
rms_norm_sum(const float* parts, void* dw, u64 count, u64 half, u64 add, const float* other_parts, void* other_dw, u64 other_count, u64 other_half,
             u64 other_add, u64 d) {
    if (blockIdx.y) parts = other_parts, dw = other_dw, count = other_count, half = other_half, add = other_add;
    const u64 c = blockIdx.x * 8 + threadIdx.x % 8;
    const float sum = column_sum<8>(parts, count, d, c);
    if (threadIdx.x < 8 && c < d) store_one(dw, c, half, add ? load_one(dw, c, half) + sum : sum);
}
