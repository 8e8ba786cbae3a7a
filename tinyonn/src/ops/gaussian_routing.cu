// All Gaussian routers of a layer at once, from x to logits and back (gaussian_routing.rs has the formulas).
//
// Legend: t tokens; of a router r values of z and c Gaussians; R values of z and N Gaussians of all routers. z [t, 2 R] f32: products of x with rounded
// projections, and behind them those with what rounding took; a value of z is the sum of both. Logits and their gradients G [t, N] f32.

const int TOKENS = 32;         // of a block
const int STRIDE = TOKENS + 4; // from one value's tokens to the next's
const int THREADS = 256;

// The projection rounded, and what rounding took; packed parameters. Blocks: `of_projection` of 1024 values each, then of 8 Gaussians each.
// log σ² of Gaussian n and value j lies at n / per * width + j * step.
extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_prepare(const float* projection, const float* mean, const float* log_variance, const float* log_prior, const float* scale, float* packed,
                 unsigned short* rounded_rows, unsigned short* rest_rows, u64 gaussians, u64 r, u64 d, u64 per, u64 row, u64 step, float times,
                 u64 of_projection) {
    if (blockIdx.x < of_projection) {
        const u64 all = r * d, from = ((u64)blockIdx.x * THREADS + threadIdx.x) * 4;
        for (u64 i = from; i < min(from + 4, all); i++) {
            const unsigned short near = rounded(projection[i]);
            rounded_rows[i] = near;
            rest_rows[i] = rounded(projection[i] - widened(near));
        }
        return;
    }
    const Packed to(packed, gaussians, r);
    const unsigned n = (blockIdx.x - of_projection) * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n == 0 && lane == 0) *to.factor = *scale * times;
    if (n >= to.columns) return;
    float logs = 0.0f;
    for (unsigned j = lane; j < to.width; j += 32) {
        const bool there = n < gaussians && j < r;
        const float own = there ? mean[n * r + j] : 0.0f, log = there ? log_variance[n / per * row + j * step] : 0.0f;
        const float precision = there ? expf(-log) : 0.0f;
        logs += log;
        to.mean_rc[j * to.columns + n] = to.mean_cr[n * to.width + j] = own;
        to.precision_rc[j * to.columns + n] = to.precision_cr[n * to.width + j] = precision;
    }
    logs = warp_sum(logs);
    if (lane == 0) to.logs[n] = logs, to.priors[n] = n < gaussians ? log_prior[n] : 0.0f;
}

__device__ float z_at(const float* z, u64 token, u64 all, unsigned column) { return z[token * 2 * all + column] + z[token * 2 * all + all + column]; }

// Logits s ℓ + log π. A thread takes four tokens and four Gaussians; blocks: tokens, routers. Shared memory: z [r, STRIDE], then logits [TOKENS, COLUMNS + 1].
extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_logits(const float* z, float* packed, const Router* routers, float* logits, u64 tokens, u64 values, u64 nodes) {
    const unsigned COLUMNS = 4 * THREADS / (TOKENS / 4);
    extern __shared__ float own_z[];
    const Router router = routers[blockIdx.y];
    const Packed of(packed + router.parameters, router.gaussians, router.r);
    float* own_logits = own_z + router.r * STRIDE;
    const u64 token = (u64)blockIdx.x * TOKENS;
    for (unsigned j = threadIdx.x % 64; j < router.r; j += 64) {
#pragma unroll
        for (unsigned t = threadIdx.x / 64; t < TOKENS; t += THREADS / 64) {
            own_z[j * STRIDE + t] = token + t < tokens ? z_at(z, token + t, values, router.column + j) : 0.0f;
        }
    }
    __syncthreads();
    const float factor = *of.factor;
    const unsigned t = threadIdx.x % (TOKENS / 4) * 4, place = threadIdx.x / (TOKENS / 4) * 4;
    for (unsigned from = 0; from < of.columns; from += COLUMNS) {
        const unsigned c = from + place;
        if (c < of.columns) {
            float sums[4][4] = {};
#pragma unroll 4
            for (unsigned j = 0; j < router.r; j++) {
                const float4 mean = *(const float4*)(of.mean_rc + j * of.columns + c), precision = *(const float4*)(of.precision_rc + j * of.columns + c);
                const float4 four = *(const float4*)(own_z + j * STRIDE + t);
                const float zs[4] = {four.x, four.y, four.z, four.w}, ms[4] = {mean.x, mean.y, mean.z, mean.w};
                const float ps[4] = {precision.x, precision.y, precision.z, precision.w};
                for (int a = 0; a < 4; a++) {
                    for (int b = 0; b < 4; b++) {
                        const float apart = zs[a] - ms[b];
                        sums[a][b] += apart * apart * ps[b];
                    }
                }
            }
            for (int b = 0; b < 4; b++) {
                for (int a = 0; a < 4; a++) {
                    own_logits[(t + a) * (COLUMNS + 1) + place + b] = factor * (-0.5f / router.r * (sums[a][b] + of.logs[c + b])) + of.priors[c + b];
                }
            }
        }
        __syncthreads();
        // Row by row, so that what lies side by side is written at once.
        const unsigned own = from + threadIdx.x % COLUMNS;
#pragma unroll
        for (unsigned row = threadIdx.x / COLUMNS; row < TOKENS; row += THREADS / COLUMNS) {
            if (own < router.gaussians && token + row < tokens) logits[(token + row) * nodes + router.first + own] = own_logits[row * (COLUMNS + 1) + own - from];
        }
        __syncthreads();
    }
}

// dz[t, j] = -s / r Σ_c G (z - μ) / σ², [t, R] bf16. A thread takes four tokens and four values; blocks: tokens, routers.
extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_z(const float* z, float* packed, const Router* routers, const float* g, unsigned short* dz, u64 tokens, u64 values, u64 nodes) {
    const int STEP = 64; // Gaussians at once
    __shared__ float own_g[STEP * STRIDE];
    const Router router = routers[blockIdx.y];
    const Packed of(packed + router.parameters, router.gaussians, router.r);
    const u64 token = (u64)blockIdx.x * TOKENS;
    const float factor = -*of.factor / router.r;
    const unsigned wide = of.width / 4, tiles = TOKENS / 4 * wide;
    const bool aligned = (values | router.column | router.r) % 4 == 0;
    for (unsigned from = 0; from < tiles; from += THREADS) {
        const unsigned tile = from + threadIdx.x, t = tile / wide * 4, j = (tile - tile / wide * wide) * 4;
        const bool there = tile < tiles;
        float sums[4][4] = {}, zs[4][4];
        for (int a = 0; a < 4; a++) {
            const bool in = there && token + t + a < tokens;
            if (aligned) {
                const float* at = z + (token + t + a) * 2 * values + router.column + j;
                const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f), near = in ? *(const float4*)at : none, rest = in ? *(const float4*)(at + values) : none;
                zs[a][0] = near.x + rest.x, zs[a][1] = near.y + rest.y, zs[a][2] = near.z + rest.z, zs[a][3] = near.w + rest.w;
                continue;
            }
            for (int b = 0; b < 4; b++) zs[a][b] = in && j + b < router.r ? z_at(z, token + t + a, values, router.column + j + b) : 0.0f;
        }
        for (unsigned first = 0; first < router.gaussians; first += STEP) {
            const unsigned count = min((unsigned)STEP, router.gaussians - first);
            __syncthreads();
            const unsigned own = threadIdx.x % STEP;
#pragma unroll
            for (unsigned row = threadIdx.x / STEP; row < TOKENS; row += THREADS / STEP) {
                const bool in = own < count && token + row < tokens;
                own_g[own * STRIDE + row] = in ? g[(token + row) * nodes + router.first + first + own] : 0.0f;
            }
            __syncthreads();
            if (!there) continue;
#pragma unroll 4
            for (unsigned c = 0; c < count; c++) {
                const u64 at = (first + c) * of.width + j;
                const float4 mean = *(const float4*)(of.mean_cr + at), precision = *(const float4*)(of.precision_cr + at);
                const float4 four = *(const float4*)(own_g + c * STRIDE + t);
                const float gs[4] = {four.x, four.y, four.z, four.w}, ms[4] = {mean.x, mean.y, mean.z, mean.w};
                const float ps[4] = {precision.x, precision.y, precision.z, precision.w};
                for (int a = 0; a < 4; a++) {
                    for (int b = 0; b < 4; b++) sums[a][b] += gs[a] * ((zs[a][b] - ms[b]) * ps[b]);
                }
            }
        }
        for (int a = 0; a < 4; a++) {
            if (!there || token + t + a >= tokens) continue;
            unsigned short* out = dz + (token + t + a) * values + router.column + j;
            unsigned short near[4];
            for (int b = 0; b < 4; b++) near[b] = rounded(factor * sums[a][b]);
            if (aligned) *(ushort4*)out = make_ushort4(near[0], near[1], near[2], near[3]);
            for (int b = 0; b < 4 && !aligned && j + b < router.r; b++) out[b] = near[b];
        }
    }
}

// Sums over the tokens of a part: of G (z - μ) and G (z - μ)² for every value of a Gaussian, of G for every Gaussian. A thread takes four Gaussians and
// four values; blocks: of `routers` and their values in their order, then parts. Shared memory holds G and z of `chunk` tokens.
extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_sums(const float* z, float* packed, const Router* routers, const float* g, float* parts, u64 count, u64 tokens, u64 values, u64 nodes,
              u64 tokens_of_part, u64 chunk, u64 room) {
    extern __shared__ float own[];
    unsigned which = 0;
    while (which + 1 < count && routers[which + 1].tile <= blockIdx.x) which++;
    const Router router = routers[which];
    const Packed of(packed + router.parameters, router.gaussians, router.r);
    float *own_g = own, *own_z = own + chunk * of.columns;
    const unsigned wide = of.width / 4, tile = (blockIdx.x - router.tile) * blockDim.x + threadIdx.x, tile_row = tile / wide;
    const unsigned c = tile_row * 4, j = (tile - tile_row * wide) * 4;
    const bool there = c < of.columns;
    float ms[4][4] = {}, once[4][4] = {}, twice[4][4] = {}, whole[4] = {};
    for (int a = 0; a < 4 && there; a++) {
        for (int b = 0; b < 4; b++) ms[a][b] = c + a < router.gaussians ? of.mean_cr[(c + a) * of.width + j + b] : 0.0f;
    }
    const u64 first = blockIdx.y * tokens_of_part, end = min(first + tokens_of_part, tokens);
    for (u64 from = first; from < end; from += chunk) {
        const unsigned here = min(chunk, end - from);
        __syncthreads();
#pragma unroll 2
        for (unsigned t = threadIdx.x / 32; t < here; t += blockDim.x / 32) {
#pragma unroll 4
            for (unsigned n = threadIdx.x % 32; n < of.columns; n += 32) {
                own_g[t * of.columns + n] = n < router.gaussians ? g[(from + t) * nodes + router.first + n] : 0.0f;
            }
#pragma unroll 2
            for (unsigned n = threadIdx.x % 32; n < of.width; n += 32) {
                own_z[t * of.width + n] = n < router.r ? z_at(z, from + t, values, router.column + n) : 0.0f;
            }
        }
        __syncthreads();
        if (!there) continue;
#pragma unroll 2
        for (unsigned t = 0; t < here; t++) {
            const float4 own_gs = *(const float4*)(own_g + t * of.columns + c), own_zs = *(const float4*)(own_z + t * of.width + j);
            const float gs[4] = {own_gs.x, own_gs.y, own_gs.z, own_gs.w}, zs[4] = {own_zs.x, own_zs.y, own_zs.z, own_zs.w};
            for (int a = 0; a < 4; a++) {
                whole[a] += gs[a];
                for (int b = 0; b < 4; b++) {
                    const float apart = zs[b] - ms[a][b], weighed = gs[a] * apart;
                    once[a][b] += weighed;
                    twice[a][b] += weighed * apart;
                }
            }
        }
    }
    if (!there) return;
    float* out = parts + blockIdx.y * room + router.sums;
    const unsigned all = router.gaussians * router.r;
    for (int a = 0; a < 4 && c + a < router.gaussians; a++) {
        if (j == 0) out[2 * all + c + a] = whole[a];
        float *to_once = out + (c + a) * router.r + j, *to_twice = to_once + all;
        if (router.r % 4 == 0) {
            *(float4*)to_once = make_float4(once[a][0], once[a][1], once[a][2], once[a][3]);
            *(float4*)to_twice = make_float4(twice[a][0], twice[a][1], twice[a][2], twice[a][3]);
            continue;
        }
        for (int b = 0; b < 4 && j + b < router.r; b++) to_once[b] = once[a][b], to_twice[b] = twice[a][b];
    }
}

// The parts in one order: a block takes 32 columns, eight threads of each an eighth of the parts.
extern "C" __global__ void __launch_bounds__(THREADS) gaussian_total(const float* parts, float* sums, u64 count, u64 room) {
    const u64 column = blockIdx.x * 32 + threadIdx.x % 32;
    const float sum = column_sum<32>(parts, count, room, column);
    if (threadIdx.x < 32 && column < room) sums[column] = sum;
}

// Where a gradient goes; nowhere, where it is not wanted.
struct Target {
    void* at;
    u64 half, add;

    __device__ void put(u64 i, float x) const { store_one(at, i, half, add ? load_one(at, i, half) + x : x); }
};

// Gradients of one router's parameters: dμ = s / r Σ G (z - μ) / σ², d log σ² = s / (2 r) (Σ G (z - μ)² / σ² - Σ G), summed over what shares a variance,
// d log π = Σ G, ds = -1 / (2 r) Σ (Σ G (z - μ)² / σ² + log σ² Σ G). A block takes a Gaussian, then those behind it a run of variances that Gaussians share;
// the last one s.
extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_gradients(float* packed, const float* sums, void* dmean, u64 half_mean, u64 add_mean, void* dlog, u64 half_log, u64 add_log, void* dprior,
                   u64 half_prior, u64 add_prior, void* dscale, u64 half_scale, u64 add_scale, u64 gaussians, u64 r, u64 per, u64 step, float times) {
    const Packed of(packed, gaussians, r);
    const u64 all = gaussians * r;
    const float *once = sums, *twice = sums + all, *whole = sums + 2 * all, factor = *of.factor / r;
    __shared__ float of_thread[THREADS];
    const u64 n = blockIdx.x;
    float own = 0.0f;
    if (n < gaussians) {
        for (u64 j = threadIdx.x; j < r; j += THREADS) {
            const float precision = of.precision_cr[n * of.width + j];
            if (dmean) Target{dmean, half_mean, add_mean}.put(n * r + j, factor * once[n * r + j] * precision);
            const float spread = 0.5f * factor * (twice[n * r + j] * precision - whole[n]);
            if (dlog && per == 1 && step) Target{dlog, half_log, add_log}.put(n * r + j, spread);
            own += spread;
        }
        if (dprior && threadIdx.x == 0) Target{dprior, half_prior, add_prior}.put(n, whole[n]);
        // One variance a Gaussian.
        if (!dlog || step) return;
    } else if (n + 1 < gridDim.x) {
        // One variance a value and router of `per` choices.
        const u64 parent = n - gaussians;
        for (u64 j = threadIdx.x; j < r && dlog; j += THREADS) {
            float spread = 0.0f;
            for (u64 c = parent * per; c < (parent + 1) * per; c++) {
                spread += 0.5f * factor * (twice[c * r + j] * of.precision_cr[c * of.width + j] - whole[c]);
            }
            Target{dlog, half_log, add_log}.put(parent * r + j, spread);
        }
        return;
    } else {
        for (u64 c = threadIdx.x / 32; c < gaussians; c += THREADS / 32) {
            for (u64 j = threadIdx.x % 32; j < r; j += 32) own += twice[c * r + j] * of.precision_cr[c * of.width + j];
        }
        for (u64 c = threadIdx.x; c < gaussians; c += THREADS) own += of.logs[c] * whole[c];
    }
    of_thread[threadIdx.x] = own;
    for (int threads = THREADS / 2; threads > 0; threads /= 2) {
        __syncthreads();
        if (threadIdx.x < threads) of_thread[threadIdx.x] += of_thread[threadIdx.x + threads];
    }
    if (threadIdx.x > 0) return;
    if (n < gaussians) Target{dlog, half_log, add_log}.put(n, of_thread[0]);
    else if (dscale) Target{dscale, half_scale, add_scale}.put(0, -0.5f * times / r * of_thread[0]);
}
