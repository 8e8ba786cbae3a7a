// What imaging and Surprise Min-K sum over the tokens of a pass (neuron_moments.rs and min_k.rs have the formulas).
//
// Legend: t tokens, d hidden, i neurons, n experts. h (gated), δ_h, δ_g, δ_u [t, i], all f32 or all bf16; y2 = ‖δ_y‖² and x2 = ‖x‖² of each token, f32;
// counted [t] u8, or nothing where all tokens count.
//
//   row_squares      y2 or x2.
//   neuron_squares   Σ_t S², S² = y2 h² + (δ_g² + δ_u²) x2: one row of parts.
//   neuron_moments   Σ_t of a = |h|, a², S, S², τ = −h δ_h, |τ| and [S > 0]: seven rows; with scales also of log1p(a / scale) and its square and of S alike.
//   expert_norms     of every token and expert √(Σ h²) and √(Σ S²) over its neurons, [t, n] each.
//   expert_moments   Σ_t of these and of their squares: four rows; with scales also of their log1p, the norms divided by the root of the expert's width.
//   sum_parts        the parts of all spans of tokens, one behind the other.
//   expert_sums      numbers of neurons [i], f64, added up by expert.
//
// A block sums a span of tokens in f32, a thread four neurons of it; spans are added in f64. Every sum has one order.

typedef unsigned u32;

const int SPAN = 64; // tokens

extern "C" __global__ void row_squares(const void* x, float* out, u64 tokens, u64 d, u64 half) {
    const u64 token = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= tokens) return;
    float sum = 0.0f;
    if (d % 4 == 0) {
        for (u64 at = threadIdx.x % 32 * 4; at < d; at += 128) {
            const Four four = load(x, token * d + at, half);
            for (int k = 0; k < 4; k++) sum += four.x[k] * four.x[k];
        }
    } else {
        for (u64 at = threadIdx.x % 32; at < d; at += 32) {
            const float value = load_one(x, token * d + at, half);
            sum += value * value;
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[token] = sum;
}

__device__ Four up_to_four(const void* from, u64 at, u64 count, bool four, bool half) {
    if (four) return load(from, at, half);
    Four values = {};
    for (u64 k = 0; k < count; k++) values.x[k] = load_one(from, at + k, half);
    return values;
}

// The sums of one neuron, or expert.
template <int SUMS>
struct Sums {
    float of[SUMS];

    __device__ Sums() {
#pragma unroll
        for (int k = 0; k < SUMS; k++) of[k] = 0.0f;
    }
};

__device__ void add_unit(float* sums, float a, float s) {
    sums[0] += a;
    sums[1] += a * a;
    sums[2] += s;
    sums[3] += s * s;
}

__device__ float logarithm(float x, float scale) { return log1pf(x / scale); }

// SUMS 1, 7 or 11.
template <int SUMS>
__device__ void neurons(const void* h, const void* dh, const void* dg, const void* du, const float* y2, const float* x2, const unsigned char* counted,
                        float* parts, u64 tokens, u64 width, u64 half, float a_scale, float s_scale) {
    const u64 first = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (first >= width) return;
    const u64 count = min((u64)4, width - first), begin = (u64)blockIdx.y * SPAN, end = min(begin + SPAN, tokens);
    const bool four = width % 4 == 0;
    Sums<SUMS> sums[4];
#pragma unroll 2
    for (u64 t = begin; t < end; t++) {
        const u64 at = t * width + first;
        const Four of_h = up_to_four(h, at, count, four, half), of_g = up_to_four(dg, at, count, four, half);
        const Four of_u = up_to_four(du, at, count, four, half), of_dh = SUMS > 1 ? up_to_four(dh, at, count, four, half) : Four{};
        const float y = y2[t], x = x2[t];
        // Behind the loads, so that those of several tokens are under way at once.
        if (counted && !counted[t]) continue;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float value = of_h.x[k], square = y * value * value + (of_g.x[k] * of_g.x[k] + of_u.x[k] * of_u.x[k]) * x;
            float* own = sums[k].of;
            if (SUMS == 1) {
                own[0] += square;
                continue;
            }
            const float a = fabsf(value), s = sqrtf(square), taylor = -value * of_dh.x[k];
            own[0] += a;
            own[1] += a * a;
            own[2] += s;
            own[3] += square;
            own[4] += taylor;
            own[5] += fabsf(taylor);
            own[6] += s > 0.0f;
            if (SUMS == 11) add_unit(own + SUMS - 4, logarithm(a, a_scale), logarithm(s, s_scale));
        }
    }
    // Unrolled, so that sums stay in registers.
#pragma unroll
    for (int sum = 0; sum < SUMS; sum++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (k < count) parts[((u64)blockIdx.y * SUMS + sum) * width + first + k] = sums[k].of[sum];
        }
    }
}

#define NEURON_ARGUMENTS                                                                                                                          \
    const void *h, const void *dh, const void *dg, const void *du, const float *y2, const float *x2, const unsigned char *counted, float *parts, \
        u64 tokens, u64 width, u64 half, float a_scale, float s_scale

extern "C" __global__ void __launch_bounds__(128) neuron_squares(NEURON_ARGUMENTS) {
    neurons<1>(h, dh, dg, du, y2, x2, counted, parts, tokens, width, half, a_scale, s_scale);
}

extern "C" __global__ void __launch_bounds__(128) neuron_moments(NEURON_ARGUMENTS) {
    neurons<7>(h, dh, dg, du, y2, x2, counted, parts, tokens, width, half, a_scale, s_scale);
}

extern "C" __global__ void __launch_bounds__(128) neuron_moments_log1p(NEURON_ARGUMENTS) {
    neurons<11>(h, dh, dg, du, y2, x2, counted, parts, tokens, width, half, a_scale, s_scale);
}

extern __shared__ float squares[]; // of a token's h, then its S², [2, i]

// A block a token; eight threads an expert at a time.
extern "C" __global__ void __launch_bounds__(256)
expert_norms(const void* h, const void* dg, const void* du, const float* y2, const float* x2, const u32* order, const u32* starts, float* a_tn, float* s_tn,
             u64 width, u64 experts, u64 half) {
    const u64 token = blockIdx.x;
    const float y = y2[token], x = x2[token];
    const bool four = width % 4 == 0;
    for (u64 first = 4 * threadIdx.x; first < width; first += 4 * blockDim.x) {
        const u64 count = min((u64)4, width - first), at = token * width + first;
        const Four of_h = up_to_four(h, at, count, four, half), of_g = up_to_four(dg, at, count, four, half), of_u = up_to_four(du, at, count, four, half);
        for (u64 k = 0; k < count; k++) {
            const float square = of_h.x[k] * of_h.x[k];
            squares[first + k] = square;
            squares[width + first + k] = y * square + (of_g.x[k] * of_g.x[k] + of_u.x[k] * of_u.x[k]) * x;
        }
    }
    __syncthreads();
    for (u64 expert = threadIdx.x / 8; expert < experts; expert += blockDim.x / 8) {
        float a = 0.0f, s = 0.0f;
        const u32 end = starts[expert + 1];
#pragma unroll 8
        for (u32 at = starts[expert] + threadIdx.x % 8; at < end; at += 8) {
            const u32 neuron = order[at];
            a += squares[neuron], s += squares[width + neuron];
        }
        for (int lanes = 4; lanes > 0; lanes /= 2) {
            a += __shfl_xor_sync(0xffu << threadIdx.x % 32 / 8 * 8, a, lanes);
            s += __shfl_xor_sync(0xffu << threadIdx.x % 32 / 8 * 8, s, lanes);
        }
        if (threadIdx.x % 8 == 0) a_tn[token * experts + expert] = sqrtf(a), s_tn[token * experts + expert] = sqrtf(s);
    }
}

template <int SUMS>
__device__ void experts_of(const float* a_tn, const float* s_tn, const u32* starts, const unsigned char* counted, float* parts, u64 tokens, u64 experts,
                           float a_scale, float s_scale) {
    const u64 expert = (u64)blockIdx.x * blockDim.x + threadIdx.x, begin = (u64)blockIdx.y * SPAN, end = min(begin + SPAN, tokens);
    if (expert >= experts) return;
    Sums<SUMS> sums;
    const float root = sqrtf((float)max(1u, starts[expert + 1] - starts[expert]));
    for (u64 t = begin; t < end; t++) {
        if (counted && !counted[t]) continue;
        const float a = a_tn[t * experts + expert], s = s_tn[t * experts + expert];
        add_unit(sums.of, a, s);
        if (SUMS == 8) add_unit(sums.of + SUMS - 4, logarithm(a, root * a_scale), logarithm(s, root * s_scale));
    }
#pragma unroll
    for (int sum = 0; sum < SUMS; sum++) parts[((u64)blockIdx.y * SUMS + sum) * experts + expert] = sums.of[sum];
}

extern "C" __global__ void expert_moments(const float* a_tn, const float* s_tn, const u32* starts, const unsigned char* counted, float* parts, u64 tokens,
                                          u64 experts, float a_scale, float s_scale) {
    experts_of<4>(a_tn, s_tn, starts, counted, parts, tokens, experts, a_scale, s_scale);
}

extern "C" __global__ void expert_moments_log1p(const float* a_tn, const float* s_tn, const u32* starts, const unsigned char* counted, float* parts,
                                                u64 tokens, u64 experts, float a_scale, float s_scale) {
    experts_of<8>(a_tn, s_tn, starts, counted, parts, tokens, experts, a_scale, s_scale);
}

// [spans, count] to [count].
extern "C" __global__ void sum_parts(const float* parts, double* out, u64 spans, u64 count) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    double sum = 0.0;
    for (u64 span = 0; span < spans; span++) sum += parts[span * count + at];
    out[at] = sum;
}

// A warp an expert.
extern "C" __global__ void expert_sums(const double* of_neurons, const u32* order, const u32* starts, double* out, u64 experts) {
    const u64 expert = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (expert >= experts) return;
    double sum = 0.0;
    for (u32 at = starts[expert] + threadIdx.x % 32; at < starts[expert + 1]; at += 32) sum += of_neurons[order[at]];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x % 32 == 0) out[expert] = sum;
}
