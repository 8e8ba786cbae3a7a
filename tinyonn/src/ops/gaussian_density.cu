// The log-density of diagonal Gaussians and its derivative (gaussian_density.rs has the formulas), in f32, as sums over differences: nothing is expanded.
//
// Legend: z [t, r], means and log-variances [c, r], densities and their gradients G [t, c].

const int TOKENS = 16; // of a block
const int STEP = 32;   // values of z, and of a Gaussian, at once

// A thread takes a Gaussian and TOKENS tokens; blocks: tokens, Gaussians by 128.
extern "C" __global__ void __launch_bounds__(128)
gaussian_forward(const float* z, const float* means, const float* log_variances, float* density, u64 tokens, u64 r, u64 gaussians) {
    __shared__ float own_z[TOKENS][STEP], own_mean[128][STEP + 1], own_precision[128][STEP + 1];
    const u64 token = (u64)blockIdx.x * TOKENS, first = (u64)blockIdx.y * 128, c = first + threadIdx.x;
    float sums[TOKENS], logs = 0.0f;
    for (int t = 0; t < TOKENS; t++) sums[t] = 0.0f;
    for (u64 from = 0; from < r; from += STEP) {
        for (int i = threadIdx.x; i < TOKENS * STEP; i += 128) {
            const u64 t = token + i / STEP, j = from + i % STEP;
            own_z[i / STEP][i % STEP] = t < tokens && j < r ? z[t * r + j] : 0.0f;
        }
        for (int i = threadIdx.x; i < 128 * STEP; i += 128) {
            const u64 at = first + i / STEP, j = from + i % STEP;
            const bool there = at < gaussians && j < r;
            own_mean[i / STEP][i % STEP] = there ? means[at * r + j] : 0.0f;
            own_precision[i / STEP][i % STEP] = there ? log_variances[at * r + j] : 0.0f;
        }
        __syncthreads();
        for (int j = 0; j < STEP; j++) {
            const bool there = from + j < r;
            const float mean = own_mean[threadIdx.x][j], log_variance = own_precision[threadIdx.x][j];
            const float precision = there ? expf(-log_variance) : 0.0f;
            logs += log_variance;
            for (int t = 0; t < TOKENS; t++) {
                const float apart = own_z[t][j] - mean;
                sums[t] += apart * apart * precision;
            }
        }
        __syncthreads();
    }
    if (c >= gaussians) return;
    for (int t = 0; t < TOKENS; t++) {
        if (token + t < tokens) density[(token + t) * gaussians + c] = -0.5f / r * (sums[t] + logs);
    }
}

// dz[t, j] = -1/r Σ_c G[t, c] (z - μ) / σ². A thread takes a value of TOKENS tokens; blocks: tokens, values by 64.
extern "C" __global__ void __launch_bounds__(64)
gaussian_input(const float* z, const float* means, const float* log_variances, const float* g, float* dz, u64 tokens, u64 r, u64 gaussians) {
    __shared__ float own_g[TOKENS][STEP];
    const u64 token = (u64)blockIdx.x * TOKENS, j = (u64)blockIdx.y * 64 + threadIdx.x;
    float sums[TOKENS], own_z[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        sums[t] = 0.0f;
        own_z[t] = token + t < tokens && j < r ? z[(token + t) * r + j] : 0.0f;
    }
    for (u64 from = 0; from < gaussians; from += STEP) {
        for (int i = threadIdx.x; i < TOKENS * STEP; i += 64) {
            const u64 t = token + i / STEP, c = from + i % STEP;
            own_g[i / STEP][i % STEP] = t < tokens && c < gaussians ? g[t * gaussians + c] : 0.0f;
        }
        __syncthreads();
        const int count = min((u64)STEP, gaussians - from);
        for (int i = 0; i < count && j < r; i++) {
            const u64 at = (from + i) * r + j;
            const float mean = means[at], precision = expf(-log_variances[at]);
            for (int t = 0; t < TOKENS; t++) sums[t] += own_g[t][i] * (own_z[t] - mean) * precision;
        }
        __syncthreads();
    }
    for (int t = 0; t < TOKENS; t++) {
        if (token + t < tokens && j < r) dz[(token + t) * r + j] = -sums[t] / r;
    }
}

// Sums over the tokens of a part: of G (z - μ) and of G ((z - μ)² / σ² - 1), [parts, 2, c, r]. A thread takes a value of a Gaussian; blocks: 256 of
// them, parts.
extern "C" __global__ void __launch_bounds__(256)
gaussian_parts(const float* z, const float* means, const float* log_variances, const float* g, float* parts, u64 tokens, u64 r, u64 gaussians,
               u64 tokens_of_part) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x, all = gaussians * r;
    if (at >= all) return;
    const u64 c = at / r, j = at % r, first = blockIdx.y * tokens_of_part, end = min(first + tokens_of_part, tokens);
    const float mean = means[at], precision = expf(-log_variances[at]);
    float once = 0.0f, twice = 0.0f;
    for (u64 t = first; t < end; t++) {
        const float own = g[t * gaussians + c], apart = z[t * r + j] - mean;
        once += own * apart;
        twice += own * (apart * apart * precision - 1.0f);
    }
    parts[(blockIdx.y * 2) * all + at] = once;
    parts[(blockIdx.y * 2 + 1) * all + at] = twice;
}

// dμ = 1/r Σ G (z - μ) / σ², d log σ² = 1/(2r) Σ G ((z - μ)² / σ² - 1), the parts in their order.
extern "C" __global__ void __launch_bounds__(256)
gaussian_parameters(const float* parts, const float* log_variances, float* dmeans, float* dlog_variances, u64 all, u64 count, u64 r) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    if (at >= all) return;
    float once = 0.0f, twice = 0.0f;
    for (u64 part = 0; part < count; part++) {
        once += parts[(part * 2) * all + at];
        twice += parts[(part * 2 + 1) * all + at];
    }
    dmeans[at] = once * expf(-log_variances[at]) / r;
    dlog_variances[at] = 0.5f * twice / r;
}
