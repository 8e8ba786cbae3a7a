// Root-mean-square normalisation and its derivative (rms_norm.rs has the formula), of rows that a warp holds in its registers: everything is read once.
//
// A row is d values in chunks of sixteen bytes, CHUNKS of them a lane at most; eight warps a block. Rows of other lengths are those of rms_norm.cu.

// y, the norm of x, or of the sum of x and `also`, which is stored then.
template <bool HALF, int CHUNKS>
__device__ void forward_rows(const void* x, const void* also, const void* w, void* sum, void* y, u64 rows, u64 d, float eps) {
    typedef Chunk<HALF> Values;
    const u64 row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const unsigned own = threadIdx.x % 32, all = d / Values::N;
    const u64 first = row * all;
    Values a[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) a[i] = Values::read(x, first + own + 32 * i, own + 32 * i < all);
    if (also) {
        Values b[CHUNKS];
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) b[i] = Values::read(also, first + own + 32 * i, own + 32 * i < all);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            float both[Values::N];
            for (int k = 0; k < Values::N; k++) both[k] = a[i][k] + b[i][k];
            a[i] = Values::of(both);
            if (own + 32 * i < all) a[i].write(sum, first + own + 32 * i);
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        for (int k = 0; k < Values::N; k++) squares += a[i][k] * a[i][k];
    }
    const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        if (own + 32 * i >= all) continue;
        const Values weight = Values::read(w, own + 32 * i, true);
        float out[Values::N];
        for (int k = 0; k < Values::N; k++) out[k] = as_stored(a[i][k] * r, HALF) * weight[k];
        Values::of(out).write(y, first + own + 32 * i);
    }
}

// dx, or dx + `also`; and, if there is room for it, Σ over the block's rows of dy ⊙ x r: a row of `parts` a block. A warp takes every so many rows.
template <bool HALF, int CHUNKS>
__device__ void backward_rows(const void* x, const void* w, const void* dy, const void* also, void* dx, float* parts, u64 rows, u64 d, float eps) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    const unsigned own = threadIdx.x % 32, warp = threadIdx.x / 32, all = d / N;
    float dw[CHUNKS][N];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        for (int k = 0; k < N; k++) dw[i][k] = 0.0f;
    }
    for (u64 row = blockIdx.x * WARPS + warp; row < rows; row += gridDim.x * WARPS) {
        const u64 first = row * all + own;
        Values a[CHUNKS], g[CHUNKS], c[CHUNKS];
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const bool there = own + 32 * i < all;
            a[i] = Values::read(x, first + 32 * i, there);
            g[i] = Values::read(dy, first + 32 * i, there);
            c[i] = Values::read(also, first + 32 * i, there && also);
        }
        float squares = 0.0f, products = 0.0f;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const Values weight = Values::read(w, own + 32 * i, own + 32 * i < all);
            for (int k = 0; k < N; k++) {
                squares += a[i][k] * a[i][k];
                products += g[i][k] * weight[k] * a[i][k];
            }
        }
        const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps), mean = warp_sum(products) * r / d;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const bool there = own + 32 * i < all;
            const Values weight = Values::read(w, own + 32 * i, there);
            float out[N];
            for (int k = 0; k < N; k++) {
                const float n = a[i][k] * r;
                out[k] = c[i][k] + r * (g[i][k] * weight[k] - n * mean);
                dw[i][k] += g[i][k] * n;
            }
            if (there) Values::of(out).write(dx, first + 32 * i);
        }
    }
    if (!parts) return;
    __shared__ float of_warp[WARPS][32 * N];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        for (int k = 0; k < N; k++) of_warp[warp][own * N + k] = dw[i][k];
        __syncthreads();
        const unsigned column = 32 * N * i + threadIdx.x;
        if (threadIdx.x < 32 * N && column < d) {
            float sum = 0.0f;
            for (int other = 0; other < WARPS; other++) sum += of_warp[other][threadIdx.x];
            parts[blockIdx.x * d + column] = sum;
        }
        __syncthreads();
    }
}

#define OF_ROWS(CHUNKS)                                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_##CHUNKS(const void* x, const void* also, const void* w, void* sum, void* y,       \
                                                                                u64 rows, u64 d, float eps, u64 half) {                                   \
        if (half) forward_rows<true, CHUNKS>(x, also, w, sum, y, rows, d, eps);                                                                            \
        else forward_rows<false, CHUNKS>(x, also, w, sum, y, rows, d, eps);                                                                                \
    }                                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_##CHUNKS(const void* x, const void* w, const void* dy, const void* also,          \
                                                                                 void* dx, float* parts, u64 rows, u64 d, float eps, u64 half) {          \
        if (half) backward_rows<true, CHUNKS>(x, w, dy, also, dx, parts, rows, d, eps);                                                                    \
        else backward_rows<false, CHUNKS>(x, w, dy, also, dx, parts, rows, d, eps);                                                                        \
    }

OF_ROWS(1)
OF_ROWS(2)
OF_ROWS(4)
OF_ROWS(8)
