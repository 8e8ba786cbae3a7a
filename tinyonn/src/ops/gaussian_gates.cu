// The gates of a few rows by a hierarchy of Gaussian routers (gaussian_gates.rs has the formulas): densities, the largest choices of every router that is on a way, and the weights of
// the experts at their ends. Of one or two rows one launch makes z and the gates: a warp a value of z, and the block that comes last goes on. Of more rows z is there, and a block
// takes a row.
//
// Legend: b rows, R values of z, each in two parts, [b, 2 R].

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

#define ROUTERS                                                                                                                                          \
    float *z, float *packed, const Router *routers, const Node *table, const unsigned *heads, void *gates, u64 count, u64 levels, u64 nodes, u64 routed, \
        u64 experts, u64 of_heads, u64 parameters, u64 normalised
#define OF_ROUTERS z, packed, routers, table, heads, gates, count, levels, nodes, routed, experts, of_heads, parameters, normalised

// What a block has near of routers, and computes of a row.
struct Ways {
    float *own_z, *log_p, *log_sum, *on_the_way; // z [R]; of every node log p; log Σ p, by the first node of its router; of every expert log p on its way
    Node* node_of;
    unsigned* head_of;
    unsigned char* open; // a mark of every node

    // Tables that no launch of a step writes, before the wait; parameters are fetched by all blocks, so that whoever needs them has them in the second cache.
    __device__ Ways(void* behind, ROUTERS) {
        own_z = (float*)behind, log_p = own_z + count, log_sum = log_p + nodes, on_the_way = log_sum + nodes;
        node_of = (Node*)(on_the_way + routed);
        head_of = (unsigned*)(node_of + nodes);
        open = (unsigned char*)(head_of + of_heads);
        for (unsigned at = blockIdx.x * THREADS + threadIdx.x; at < (parameters * 4 + 127) / 128; at += gridDim.x * THREADS) fetch(packed + 32 * at, min(128u, (unsigned)(4 * (parameters - 32 * at))));
        for (unsigned at = threadIdx.x; at < nodes * (sizeof(Node) / 4); at += THREADS) ((unsigned*)node_of)[at] = ((const unsigned*)table)[at];
        for (unsigned at = threadIdx.x; at < of_heads; at += THREADS) head_of[at] = heads[at];
    }

    // The gates of row b, by all threads.
    __device__ void row(unsigned b, const Router& first, const Router& second, ROUTERS) {
        const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (unsigned j = threadIdx.x; j < count; j += THREADS) own_z[j] = __ldcg(z + b * 2 * count + j) + __ldcg(z + b * 2 * count + count + j);
        __syncthreads();
        for (unsigned level = 0; level < levels; level++) {
            const Router router = level == 0 ? first : level == 1 ? second : routers[level];
            const Packed of(packed + router.parameters, router.gaussians, router.r);
            const float factor = *of.factor;
            // Half a warp a Gaussian, four of them at once.
            const unsigned AT_ONCE = 4, step = 2 * WARPS, quarter = lane % 16;
            for (unsigned from = 2 * warp + lane / 16; from - lane / 16 < router.gaussians; from += AT_ONCE * step) {
                float sums[AT_ONCE] = {};
                for (unsigned j = 4 * quarter; j < router.r; j += 64) {
#pragma unroll
                    for (unsigned k = 0; k < AT_ONCE; k++) {
                        const unsigned c = min(from + k * step, router.gaussians - 1);
                        const float4 mean = *(const float4*)(of.mean_cr + c * of.width + j), precision = *(const float4*)(of.precision_cr + c * of.width + j);
                        const float means[4] = {mean.x, mean.y, mean.z, mean.w}, precisions[4] = {precision.x, precision.y, precision.z, precision.w};
#pragma unroll
                        for (unsigned i = 0; i < 4; i++) {
                            const float apart = j + i < router.r ? own_z[router.column + j + i] - means[i] : 0.0f;
                            sums[k] += apart * apart * precisions[i];
                        }
                    }
                }
#pragma unroll
                for (unsigned k = 0; k < AT_ONCE; k++) {
                    const unsigned c = from + k * step;
                    for (int apart = 8; apart > 0; apart /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], apart);
                    if (quarter == 0 && c < router.gaussians) log_p[router.first + c] = factor * (-0.5f / router.r * (sums[k] + of.logs[c])) + of.priors[c];
                }
            }
        }
        __syncthreads();
        for (unsigned node = threadIdx.x; node < nodes; node += THREADS) {
            const Node own = node_of[node];
            const float key = as_key(log_p[node]);
            unsigned ahead = 0;
            for (unsigned other = own.first; other < own.end; other++) {
                const float of = as_key(log_p[other]);
                ahead += other < node ? of >= key : of > key;
            }
            open[node] = ahead < own.k;
        }
        for (unsigned router = warp; router < of_heads; router += WARPS) {
            const unsigned from = head_of[router], to = node_of[from].end;
            float max = __int_as_float(0xff800000), sum = 0.0f;
            for (unsigned node = from + lane; node < to; node += 32) max = fmaxf(max, log_p[node]);
            max = warp_max(max);
            for (unsigned node = from + lane; node < to; node += 32) sum += expf(log_p[node] - max);
            sum = warp_sum(sum);
            if (lane == 0) log_sum[from] = max + logf(sum);
        }
        __syncthreads();
        float max = __int_as_float(0xff800000), taken = 0.0f, sum = 0.0f;
        for (unsigned n = threadIdx.x; n < routed; n += THREADS) {
            unsigned node = nodes - routed + n;
            float joint = log_p[node] - log_sum[node_of[node].first];
            bool all_open = open[node];
            while (node_of[node].above != node) {
                node = node_of[node].above;
                joint += log_p[node] - log_sum[node_of[node].first];
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
        for (unsigned n = threadIdx.x; n < experts; n += THREADS) store_one(gates, b * experts + n, HALF, n < routed ? expf(on_the_way[n] - max) * scale : 1.0f);
        __syncthreads();
    }
};

#define FROM_X const void *x, const void *norm, float eps, u64 rows, u64 d, const void *projections, unsigned *arrived
template <int ROWS>
__device__ void gates_from_x(FROM_X, ROUTERS) {
    const Rows of = {x, norm, (unsigned)rows, (unsigned)(d / Chunk<HALF>::N), eps};
    const u64 bytes = d * (HALF ? 2 : 4);
    __shared__ bool last;
    let_the_next_launch_begin();
    Ways ways(behind_rows<ROWS>(of), OF_ROUTERS);
    const Router first = routers[0], second = routers[min((unsigned)levels - 1, 1)];
    products<ROWS, 1, true>(
        of, 2 * count, Every{}, [&](unsigned output, const void*(&line)[1]) { line[0] = (const char*)projections + output * bytes; },
        [&](unsigned, unsigned) { return Beside{}; }, [&](unsigned output, unsigned b, Beside, float(&sums)[1]) { z[b * 2 * count + output] = sums[0]; });
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1) == gridDim.x - 1;
        if (last) *arrived = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (unsigned b = 0; b < of.count; b++) ways.row(b, first, second, OF_ROUTERS);
}

#define OF_ROWS(ROWS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gates_from_x_##ROWS(FROM_X, ROUTERS) { \
        gates_from_x<ROWS>(x, norm, eps, rows, d, projections, arrived, OF_ROUTERS);                    \
    }

OF_ROWS(1)
OF_ROWS(2)

// A block a row.
extern "C" __global__ void __launch_bounds__(THREADS) gates_from_z(ROUTERS) {
    let_the_next_launch_begin();
    Ways ways(held, OF_ROUTERS);
    const Router first = routers[0], second = routers[min((unsigned)levels - 1, 1)];
    wait_for_the_launch_before();
    ways.row(blockIdx.x, first, second, OF_ROUTERS);
}
