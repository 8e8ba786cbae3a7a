// From z to the gates of a few rows: Gaussian densities, the largest choices of every router that is on a way, and the weights of the experts at their ends, a block a row
// (gaussian_gates.rs has the formulas).

const int THREADS = 512;
const int WARPS = THREADS / 32;

extern __shared__ float values[]; // z [R]; of every node log p, and of every expert log p on its way; a mark of every node

// The sum or the largest of a value of every thread, in all of them.
template <bool MAX>
__device__ float of_block(float x) {
    __shared__ float of_warp[WARPS];
    x = MAX ? warp_max(x) : warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
    for (int warp = 1; warp < WARPS; warp++) x = MAX ? fmaxf(x, of_warp[warp]) : x + of_warp[warp];
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
gaussian_gates(const float* z, float* packed, const Router* routers, const Node* table, const unsigned* heads, void* gates, u64 count, u64 levels, u64 nodes,
               u64 routed, u64 experts, u64 of_heads, u64 normalised, u64 half) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *own_z = values, *log_p = own_z + count, *on_the_way = log_p + nodes;
    unsigned char* open = (unsigned char*)(on_the_way + routed);
    let_the_next_launch_begin();
    wait_for_the_launch_before();
    z += blockIdx.x * 2 * count;
    for (unsigned j = threadIdx.x; j < count; j += THREADS) own_z[j] = z[j] + z[count + j];
    __syncthreads();
    for (unsigned level = 0; level < levels; level++) {
        const Router router = routers[level];
        const Packed of(packed + router.parameters, router.gaussians, router.r);
        const float factor = *of.factor;
        for (unsigned c = warp; c < router.gaussians; c += WARPS) {
            float sum = 0.0f;
            for (unsigned j = lane; j < router.r; j += 32) {
                const float apart = own_z[router.column + j] - of.mean_cr[c * of.width + j];
                sum += apart * apart * of.precision_cr[c * of.width + j];
            }
            sum = warp_sum(sum);
            if (lane == 0) log_p[router.first + c] = factor * (-0.5f / router.r * (sum + of.logs[c])) + of.priors[c];
        }
    }
    __syncthreads();
    for (unsigned node = threadIdx.x; node < nodes; node += THREADS) {
        const Node own = table[node];
        const float key = as_key(log_p[node]);
        unsigned ahead = 0;
        for (unsigned other = own.first; other < own.end; other++) {
            const float of = as_key(log_p[other]);
            ahead += other < node ? of >= key : of > key;
        }
        open[node] = ahead < own.k;
    }
    __syncthreads();
    for (unsigned router = warp; router < of_heads; router += WARPS) {
        const unsigned from = heads[router], to = table[from].end;
        float max = __int_as_float(0xff800000), sum = 0.0f;
        for (unsigned node = from + lane; node < to; node += 32) max = fmaxf(max, log_p[node]);
        max = warp_max(max);
        for (unsigned node = from + lane; node < to; node += 32) sum += expf(log_p[node] - max);
        const float log_sum = max + logf(warp_sum(sum));
        for (unsigned node = from + lane; node < to; node += 32) log_p[node] -= log_sum;
    }
    __syncthreads();
    float max = __int_as_float(0xff800000), taken = 0.0f, sum = 0.0f;
    for (unsigned n = threadIdx.x; n < routed; n += THREADS) {
        unsigned node = nodes - routed + n;
        float joint = log_p[node];
        bool all_open = open[node];
        while (table[node].above != node) {
            node = table[node].above;
            joint += log_p[node];
            all_open = all_open && open[node];
        }
        on_the_way[n] = all_open ? joint : __int_as_float(0xff800000);
        if (all_open) max = fmaxf(max, joint), taken += 1.0f;
    }
    max = of_block<true>(max);
    taken = of_block<false>(taken);
    for (unsigned n = threadIdx.x; n < routed; n += THREADS) sum += expf(on_the_way[n] - max);
    sum = of_block<false>(sum);
    const float scale = (normalised ? 1.0f : taken) / sum;
    for (unsigned n = threadIdx.x; n < experts; n += THREADS) {
        store_one(gates, blockIdx.x * experts + n, half, n < routed ? expf(on_the_way[n] - max) * scale : 1.0f);
    }
}
