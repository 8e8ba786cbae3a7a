// From the logits of a hierarchy of routers to the experts that are taken and their gates, and back (hierarchy.rs has the formulas).
//
// hierarchy_nodes.cu says what `table` has; `heads` the first node of each router. The nodes of the last level are the routed experts. A block takes `each` tokens and keeps values of all their nodes in shared memory; its
// threads go over routers, nodes or experts of all its tokens, and a warp sums over a token.

extern __shared__ float values[];

const int THREADS = 128;

struct Tokens {
    const Node* table;
    const unsigned* heads;
    unsigned nodes, experts, routers; // routed experts
    u64 first;                        // token of the block
    unsigned count;                   // tokens of the block
    float* log_p;                     // of every node given the one above; a logit before

    __device__ unsigned expert(unsigned n) const { return nodes - experts + n; }

    // log p of an expert of a token whose nodes begin at `at`: the sum of those on its way from the top.
    __device__ float on_the_way(unsigned at, unsigned n) const {
        float sum = 0.0f;
        unsigned node = expert(n);
        while (true) {
            sum += log_p[at + node];
            if (table[node].above == node) return sum;
            node = table[node].above;
        }
    }
};

__device__ Tokens of_block(const Node* table, const unsigned* heads, u64 tokens, u64 each, u64 nodes, u64 experts, u64 routers) {
    const u64 first = blockIdx.x * each;
    return {table, heads, (unsigned)nodes, (unsigned)experts, (unsigned)routers, first, (unsigned)min(each, tokens - first), values};
}

// Logits to log p, a thread a router; and marks of the k largest of each router, where they are asked for, which takes room for a key of every node.
__device__ void read(const Tokens& of, const float* logits, float* keys, unsigned char* open) {
    for (unsigned i = threadIdx.x; i < of.count * of.nodes; i += THREADS) {
        const float logit = logits[of.first * of.nodes + i];
        of.log_p[i] = logit;
        if (open) keys[i] = as_key(logit);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < of.count * of.routers; i += THREADS) {
        const unsigned token = i / of.routers, head = of.heads[i - token * of.routers], at = token * of.nodes;
        const unsigned from = at + head, to = at + of.table[head].end, k = of.table[head].k;
        float max = of.log_p[from], sum = 0.0f;
        for (unsigned own = from; own < to; own++) max = fmaxf(max, of.log_p[own]);
        for (unsigned own = from; own < to; own++) sum += expf(of.log_p[own] - max);
        if (open) {
            for (unsigned own = from; own < to; own++) {
                const float key = keys[own];
                unsigned ahead = 0;
                for (unsigned other = from; other < own; other++) ahead += keys[other] >= key;
                for (unsigned other = own + 1; other < to; other++) ahead += keys[other] > key;
                open[own] = ahead < k;
            }
        }
        const float log_sum = max + logf(sum);
        for (unsigned own = from; own < to; own++) of.log_p[own] -= log_sum;
    }
    __syncthreads();
}

// normalised: 1 for p / Σ p over what is taken, 0 for that times their number.
extern "C" __global__ void __launch_bounds__(THREADS)
hierarchy_gates(const float* logits, const Node* table, const unsigned* heads, void* gates, float* taken, u64 tokens, u64 each, u64 nodes, u64 experts,
                u64 routers, u64 all, u64 normalised, u64 half) {
    const Tokens of = of_block(table, heads, tokens, each, nodes, experts, routers);
    float* joint = values + each * nodes;
    unsigned char* open = (unsigned char*)(joint + each * nodes);
    read(of, logits, joint, open);
    for (unsigned i = threadIdx.x; i < of.count * of.experts; i += THREADS) {
        const unsigned token = i / of.experts, n = i - token * of.experts, at = token * of.nodes;
        joint[at + n] = of.on_the_way(at, n);
        unsigned node = of.expert(n);
        bool all_open = open[at + node];
        while (table[node].above != node) {
            node = table[node].above;
            all_open = all_open && open[at + node];
        }
        // Nobody else reads an expert's mark.
        open[at + of.expert(n)] = all_open;
    }
    __syncthreads();
    for (unsigned token = threadIdx.x / 32; token < of.count; token += THREADS / 32) {
        const float* own = joint + token * of.nodes;
        const unsigned char* on = open + token * of.nodes + of.expert(0);
        float max = __int_as_float(0xff800000), count = 0.0f, sum = 0.0f;
        for (unsigned n = threadIdx.x % 32; n < of.experts; n += 32) {
            if (!on[n]) continue;
            max = fmaxf(max, own[n]);
            count += 1.0f;
        }
        max = warp_max(max);
        count = warp_sum(count);
        for (unsigned n = threadIdx.x % 32; n < of.experts; n += 32) {
            if (on[n]) sum += expf(own[n] - max);
        }
        const float scale = (normalised ? 1.0f : count) / warp_sum(sum);
        const u64 out = (of.first + token) * all;
        for (unsigned n = threadIdx.x % 32; n < all; n += 32) {
            const bool taking = n >= of.experts || on[n];
            store_one(gates, out + n, half, n >= of.experts ? 1.0f : taking ? expf(own[n] - max) * scale : 0.0f);
            taken[out + n] = taking ? 1.0f : 0.0f;
        }
    }
}

// ∂L/∂logits, given ∂L/∂gates: with q = p / Σ p over what is taken and K their number, e_n = K q_n (dw_n - Σ q dw) (without K where gates are normalised);
// a node's e is the sum of those below it, and its logit's derivative is e less its probability times the sum of e over its router.
extern "C" __global__ void __launch_bounds__(THREADS)
hierarchy_logits(const float* logits, const Node* table, const unsigned* heads, const unsigned* levels, const float* taken, const void* dgates,
                 float* dlogits, u64 tokens, u64 each, u64 nodes, u64 experts, u64 routers, u64 all, u64 depth, u64 normalised, u64 half) {
    const Tokens of = of_block(table, heads, tokens, each, nodes, experts, routers);
    float* sums = values + each * nodes; // log p of experts, then e of every node
    read(of, logits, 0, 0);
    for (unsigned i = threadIdx.x; i < of.count * of.experts; i += THREADS) {
        const unsigned token = i / of.experts, n = i - token * of.experts, at = token * of.nodes;
        sums[at + of.expert(n)] = of.on_the_way(at, n);
    }
    __syncthreads();
    for (unsigned token = threadIdx.x / 32; token < of.count; token += THREADS / 32) {
        float* own = sums + token * of.nodes + of.expert(0);
        const u64 in = (of.first + token) * all;
        float max = __int_as_float(0xff800000), count = 0.0f, sum = 0.0f, product = 0.0f;
        for (unsigned n = threadIdx.x % 32; n < of.experts; n += 32) {
            if (taken[in + n] == 0.0f) continue;
            max = fmaxf(max, own[n]);
            count += 1.0f;
        }
        max = warp_max(max);
        count = warp_sum(count);
        for (unsigned n = threadIdx.x % 32; n < of.experts; n += 32) {
            if (taken[in + n] == 0.0f) continue;
            const float p = expf(own[n] - max);
            sum += p;
            product += p * load_one(dgates, in + n, half);
        }
        sum = warp_sum(sum);
        product = warp_sum(product) / sum;
        const float scale = (normalised ? 1.0f : count) / sum;
        for (unsigned n = threadIdx.x % 32; n < of.experts; n += 32) {
            own[n] = taken[in + n] == 0.0f ? 0.0f : expf(own[n] - max) * scale * (load_one(dgates, in + n, half) - product);
        }
    }
    for (u64 level = depth - 1; level > 0; level--) {
        __syncthreads();
        const unsigned from = levels[level - 1], width = levels[level] - from;
        for (unsigned i = threadIdx.x; i < of.count * width; i += THREADS) {
            const unsigned token = i / width, node = from + i - token * width;
            float e = 0.0f;
            for (unsigned below = table[node].below; below < table[node].below_end; below++) e += sums[token * of.nodes + below];
            sums[token * of.nodes + node] = e;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < of.count * of.routers; i += THREADS) {
        const unsigned token = i / of.routers, head = heads[i - token * of.routers], at = token * of.nodes, to = at + table[head].end;
        float e = 0.0f;
        for (unsigned own = at + head; own < to; own++) e += sums[own];
        for (unsigned own = at + head; own < to; own++) sums[own] -= expf(of.log_p[own]) * e;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < of.count * of.nodes; i += THREADS) dlogits[of.first * of.nodes + i] = sums[i];
}
