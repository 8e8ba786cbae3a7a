// From the logits of a hierarchy of routers to the experts that are taken and their gates, and back (hierarchy.rs has the formulas). A block a token.
//
// Nodes are numbered through all levels, from the top. `table` has of each node: the first node of its router and the one behind its last, how many
// choices that router takes, the node above (itself at the top), and the first node below and the one behind the last. The nodes of the last level
// are the routed experts. What a token needs lies in shared memory: its logits, log Σ exp of each router at the router's first node, marks of what
// is taken, and in the backward two values more a node.

struct Node {
    unsigned first, end, k, above, below, below_end;
};

extern __shared__ float values[];

struct Token {
    const Node* table;
    unsigned nodes, experts; // routed
    float *logits, *log_sums;
    unsigned char* open;

    __device__ unsigned expert(unsigned n) const { return nodes - experts + n; }

    // log p of an expert: the sum of those on its way from the top.
    __device__ float log_p(unsigned n) const {
        float sum = 0.0f;
        unsigned node = expert(n);
        while (true) {
            sum += logits[node] - log_sums[table[node].first];
            if (table[node].above == node) return sum;
            node = table[node].above;
        }
    }
};

__device__ float as_key(float x) { return x == x ? x + 0.0f : __int_as_float(0x7f800000); }

// The sum or the maximum over a block of 128 threads, in every thread and one order.
template <bool MAX>
__device__ float over_block(float x) {
    __shared__ float of_warp[4];
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, x, lanes);
        x = MAX ? fmaxf(x, other) : x + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    const float a = of_warp[0], b = of_warp[1], c = of_warp[2], d = of_warp[3];
    return MAX ? fmaxf(fmaxf(a, b), fmaxf(c, d)) : (a + b) + (c + d);
}

__device__ Token read(const float* logits, const Node* table, unsigned nodes, unsigned experts) {
    Token token = {table, nodes, experts, values, values + nodes, (unsigned char*)(values + 2 * nodes)};
    for (unsigned node = threadIdx.x; node < nodes; node += blockDim.x) token.logits[node] = logits[(u64)blockIdx.x * nodes + node];
    __syncthreads();
    for (unsigned node = threadIdx.x; node < nodes; node += blockDim.x) {
        if (table[node].first != node) continue;
        float max = token.logits[node], sum = 0.0f;
        for (unsigned other = node; other < table[node].end; other++) max = fmaxf(max, token.logits[other]);
        for (unsigned other = node; other < table[node].end; other++) sum += expf(token.logits[other] - max);
        token.log_sums[node] = max + logf(sum);
    }
    __syncthreads();
    return token;
}

// normalised: 1 for p / Σ p over what is taken, 0 for that times their number.
extern "C" __global__ void __launch_bounds__(128)
hierarchy_gates(const float* logits, const Node* table, const unsigned* levels, void* gates, float* taken, u64 nodes, u64 experts, u64 all, u64 depth,
                u64 normalised, u64 half) {
    const Token token = read(logits, table, nodes, experts);
    for (u64 level = 0; level < depth; level++) {
        for (unsigned node = levels[level] + threadIdx.x; node < levels[level + 1]; node += blockDim.x) {
            const Node own = table[node];
            const float key = as_key(token.logits[node]);
            unsigned ahead = 0;
            for (unsigned other = own.first; other < own.end; other++) {
                const float its = as_key(token.logits[other]);
                ahead += its > key || (its == key && other < node);
            }
            token.open[node] = ahead < own.k && (own.above == node || token.open[own.above]);
        }
        __syncthreads();
    }
    float max = __int_as_float(0xff800000), count = 0.0f;
    for (unsigned n = threadIdx.x; n < experts; n += blockDim.x) {
        if (!token.open[token.expert(n)]) continue;
        max = fmaxf(max, token.log_p(n));
        count += 1.0f;
    }
    max = over_block<true>(max);
    count = over_block<false>(count);
    float sum = 0.0f;
    for (unsigned n = threadIdx.x; n < experts; n += blockDim.x) {
        if (token.open[token.expert(n)]) sum += expf(token.log_p(n) - max);
    }
    const float scale = (normalised ? 1.0f : count) / over_block<false>(sum);
    for (unsigned n = threadIdx.x; n < all; n += blockDim.x) {
        const bool open = n >= experts || token.open[token.expert(n)];
        const float gate = n >= experts ? 1.0f : open ? expf(token.log_p(n) - max) * scale : 0.0f;
        store_one(gates, blockIdx.x * all + n, half, gate);
        taken[blockIdx.x * all + n] = open ? 1.0f : 0.0f;
    }
}

// ∂L/∂logits, given ∂L/∂gates: with q = p / Σ p over what is taken and K their number, e_n = K q_n (dw_n - Σ q dw) (without K where gates are normalised);
// a node's e is the sum of those below it, and its logit's derivative is e less its probability times the sum of e over its router.
extern "C" __global__ void __launch_bounds__(128)
hierarchy_logits(const float* logits, const Node* table, const unsigned* levels, const float* taken, const void* dgates, float* dlogits, u64 nodes,
                 u64 experts, u64 all, u64 depth, u64 normalised, u64 half) {
    const Token token = read(logits, table, nodes, experts);
    float* sums = values + 2 * nodes + (nodes + 3) / 4; // e of every node
    float* of_router = sums + nodes;
    const float* on = taken + blockIdx.x * all;
    float max = __int_as_float(0xff800000), count = 0.0f;
    for (unsigned n = threadIdx.x; n < experts; n += blockDim.x) {
        if (on[n] == 0.0f) continue;
        max = fmaxf(max, token.log_p(n));
        count += 1.0f;
    }
    max = over_block<true>(max);
    count = over_block<false>(count);
    float sum = 0.0f, product = 0.0f;
    for (unsigned n = threadIdx.x; n < experts; n += blockDim.x) {
        if (on[n] == 0.0f) continue;
        const float p = expf(token.log_p(n) - max);
        sum += p;
        product += p * load_one(dgates, blockIdx.x * all + n, half);
    }
    sum = over_block<false>(sum);
    product = over_block<false>(product) / sum;
    const float scale = (normalised ? 1.0f : count) / sum;
    for (unsigned n = threadIdx.x; n < experts; n += blockDim.x) {
        const float e = on[n] == 0.0f ? 0.0f : expf(token.log_p(n) - max) * scale * (load_one(dgates, blockIdx.x * all + n, half) - product);
        sums[token.expert(n)] = e;
    }
    for (u64 level = depth - 1; level > 0; level--) {
        __syncthreads();
        for (unsigned node = levels[level - 1] + threadIdx.x; node < levels[level]; node += blockDim.x) {
            float e = 0.0f;
            for (unsigned below = table[node].below; below < table[node].below_end; below++) e += sums[below];
            sums[node] = e;
        }
    }
    __syncthreads();
    for (unsigned node = threadIdx.x; node < nodes; node += blockDim.x) {
        if (table[node].first != node) continue;
        float e = 0.0f;
        for (unsigned other = node; other < table[node].end; other++) e += sums[other];
        of_router[node] = e;
    }
    __syncthreads();
    for (unsigned node = threadIdx.x; node < nodes; node += blockDim.x) {
        const unsigned first = table[node].first;
        dlogits[(u64)blockIdx.x * nodes + node] = sums[node] - expf(token.logits[node] - token.log_sums[first]) * of_router[first];
    }
}
