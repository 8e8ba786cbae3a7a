// One AdamW step of every weight of a table (adamw.rs has the formula), in one launch.
//
// A block takes a row of a weight that learns by rows, or PART values of one that learns as a whole; it finds its weight by the first block of
// each. Weights and counts are f32 and f64; gradients, moments and the rounded copy that passes compute with are f32 or bf16.

const u64 PART = 16384; // values of a block, of a weight that learns as a whole; adamw_kernel.rs counts blocks by it

// Ten words of eight bytes, as adamw_kernel.rs writes them.
struct Descriptor {
    float* weight;
    unsigned short* work; // bf16, or null
    const void* gradient;
    void* m;
    void* v;
    double* counts;             // steps taken, a row or one
    const unsigned char* learn; // a row or one
    u64 rows;                   // marks: 1 of a weight that learns as a whole
    u64 width;                  // values a row
    u64 first;                  // its first block
    u64 halves;                 // 1: the gradient is bf16; 2: the moments are
    double decay;
};

struct Step {
    float scale, b1, b2, keep, rate, root, eps;

    __device__ void update(float& p, float& m, float& v, float g) const {
        g *= scale;
        m = b1 * m + (1.0f - b1) * g;
        v = b2 * v + (1.0f - b2) * g * g;
        p = keep * p - rate * m / (sqrtf(v * root) + eps);
    }
};

extern "C" __global__ void adamw(const Descriptor* table, unsigned weights, unsigned* done, const double* scale,
                                 const unsigned char* finite, double rate, double beta1, double beta2, double eps) {
    if (!*finite) return;
    // The last weight whose first block is not behind this one.
    unsigned low = 0, high = weights - 1;
    while (low < high) {
        unsigned middle = (low + high + 1) / 2;
        if (table[middle].first <= blockIdx.x) low = middle;
        else high = middle - 1;
    }
    const Descriptor of = table[low];
    const u64 block = blockIdx.x - of.first;
    const bool whole = of.rows == 1;
    const u64 row = whole ? 0 : block;
    if (!of.learn[row]) return;
    const u64 begin = whole ? block * PART : row * of.width;
    const u64 count = whole ? min(PART, of.width - begin) : of.width;

    __shared__ Step step;
    __shared__ double taken;
    if (threadIdx.x == 0) {
        taken = of.counts[row] + 1.0;
        step.scale = (float)*scale;
        step.b1 = (float)beta1;
        step.b2 = (float)beta2;
        step.keep = (float)(1.0 - rate * of.decay);
        step.rate = (float)(rate / (1.0 - pow(beta1, taken)));
        step.root = (float)(1.0 / (1.0 - pow(beta2, taken)));
        step.eps = (float)eps;
    }
    __syncthreads();
    const Step own = step;
    const bool half_g = of.halves & 1, half_m = of.halves & 2;
    // Rows of an odd width begin where four values cannot be read at once.
    const u64 fours = begin % 4 == 0 ? count / 4 * 4 : 0;
    for (u64 i = begin + 4 * threadIdx.x; i < begin + fours; i += 4 * blockDim.x) {
        Four p = load(of.weight, i, false), m = load(of.m, i, half_m), v = load(of.v, i, half_m);
        const Four g = load(of.gradient, i, half_g);
        for (int k = 0; k < 4; k++) own.update(p.x[k], m.x[k], v.x[k], g.x[k]);
        store(of.weight, i, false, p);
        store(of.m, i, half_m, m);
        store(of.v, i, half_m, v);
        if (of.work) store(of.work, i, true, p);
    }
    for (u64 i = begin + fours + threadIdx.x; i < begin + count; i += blockDim.x) {
        float p = of.weight[i], m = load_one(of.m, i, half_m), v = load_one(of.v, i, half_m);
        own.update(p, m, v, load_one(of.gradient, i, half_g));
        of.weight[i] = p;
        store_one(of.m, i, half_m, m);
        store_one(of.v, i, half_m, v);
        if (of.work) of.work[i] = rounded(p);
    }
    // The count moves when every block of the weight has read it.
    if (threadIdx.x == 0) {
        const u64 blocks = whole ? (of.width + PART - 1) / PART : 1;
        __threadfence();
        if (blocks == 1 || atomicAdd(&done[low], 1u) == blocks - 1) of.counts[row] = taken;
    }
}
