// Attention of one new position of a few sequences to those before it, whose number is read on the device (decode_attention.rs has the formulas).
//
// Legend: b sequences, G query heads of a key head, D values of a head; a lane takes a chunk of a head, LANES of them a key. q, k and v of the new position lie side by
// side, [b, (H + 2 K) D]. Blocks: sequences and their key heads, parts of the positions. Every block turns its own queries; the one with the new position turns and
// keeps its key and value. The block that comes last to a key head puts the parts together, in their order. What earlier steps have written, keys and the number of
// positions, is read before the launch ahead has ended: no launch of a step begins before the step ahead has ended (next_token.cu).

const int THREADS = 256;
const int WARPS = THREADS / 32;
const bool HALF = KEPT_IN_BF16;
const int AHEAD = 4;         // keys that a lane has under way
const int LEAST = 64;        // positions of a part
const int PAIRS = 4;         // values of half a head that a lane has
const float LOWEST = -1e30f; // below any score

struct Heads {
    const void *qkv, *q_norm, *k_norm, *cosines, *sines; // norms [D] or 0; angles [positions, D / 2] f32, or 0
    unsigned heads, kv_heads, head_dim;
    float eps;
};

// How a warp turns a head: its lane's weights of the norm and angles.
struct Turn {
    float norm[2][PAIRS], c[PAIRS], s[PAIRS];

    __device__ Turn(const Heads& of, const void* weights, unsigned position) {
        const unsigned half = of.head_dim / 2;
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const unsigned j = threadIdx.x % 32 + 32 * k;
            const bool there = j < half;
            norm[0][k] = weights && there ? load_one(weights, j, HALF) : 0.0f;
            norm[1][k] = weights && there ? load_one(weights, half + j, HALF) : 0.0f;
            c[k] = of.cosines && there ? as_stored(((const float*)of.cosines)[(u64)position * half + j], HALF) : 1.0f;
            s[k] = of.sines && there ? as_stored(((const float*)of.sines)[(u64)position * half + j], HALF) : 0.0f;
        }
    }

    // Head `head` of qkv of a sequence, normalised and turned by a warp, as it would be stored.
    __device__ void turned(const Heads& of, bool normed, u64 sequence, unsigned head, float* to) const {
        const unsigned d = of.head_dim, half = d / 2;
        const u64 first = (sequence * (of.heads + 2 * of.kv_heads) + head) * d;
        float x[2][PAIRS], squares = 0.0f, root = 1.0f;
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const unsigned j = threadIdx.x % 32 + 32 * k;
#pragma unroll
            for (int of_half = 0; of_half < 2; of_half++) x[of_half][k] = j < half ? load_one(of.qkv, first + of_half * half + j, HALF) : 0.0f;
        }
        if (normed) {
#pragma unroll
            for (int k = 0; k < PAIRS; k++) squares += x[0][k] * x[0][k] + x[1][k] * x[1][k];
            root = 1.0f / sqrtf(warp_sum(squares) / d + of.eps);
        }
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const unsigned j = threadIdx.x % 32 + 32 * k;
            if (j >= half) continue;
            float a = x[0][k], b = x[1][k];
            if (normed) {
                a = as_stored(as_stored(a * root, HALF) * norm[0][k], HALF);
                b = as_stored(as_stored(b * root, HALF) * norm[1][k], HALF);
            }
            if (of.cosines) {
                const float turned_a = a * c[k] - b * s[k];
                b = as_stored(b * c[k] + a * s[k], HALF);
                a = as_stored(turned_a, HALF);
            }
            to[j] = a;
            to[half + j] = b;
        }
    }
};

#define ATTEND                                                                                                                                     \
    const void *qkv, const void *q_norm, const void *k_norm, const void *cosines, const void *sines, void *keys, void *values, const unsigned *position, \
        float *sums, float2 *stats, unsigned *arrived, void *y, u64 heads, u64 kv_heads, u64 head_dim, u64 room, float eps, float scale
template <int G>
__device__ void attend(ATTEND) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    extern __shared__ float own[]; // queries [G, D], a new key [D]; later sums of all streams [streams, G, D]
    __shared__ float2 of_stream[WARPS * 8][G];
    __shared__ bool last;
    const Heads of = {qkv, q_norm, k_norm, cosines, sines, (unsigned)heads, (unsigned)kv_heads, (unsigned)head_dim, eps};
    const unsigned d = head_dim, lanes = d / N, at_once = 32 / lanes, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned chunk = lane % lanes, stream = warp * at_once + lane / lanes, streams = WARPS * at_once;
    const u64 b = blockIdx.x / of.kv_heads, kv = blockIdx.x % of.kv_heads;
    let_the_next_launch_begin();
    const unsigned now = *position, all = now + 1, parts = gridDim.y;
    const unsigned span = max((all + parts - 1) / parts, LEAST), begin = blockIdx.y * span, end = min(all, begin + span);
    const unsigned taken = (all + span - 1) / span; // parts with a position
    if (begin >= all) {
        wait_for_the_launch_before();
        return;
    }
    const u64 in_room = (b * room * of.kv_heads + kv) * d; // of position 0
    const u64 stride = (u64)of.kv_heads * d;
    Values key[AHEAD], value[AHEAD];
    auto read = [&](unsigned from, unsigned end) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const unsigned at = from + streams * a;
            const u64 place = (in_room + at * stride) / N + chunk;
            key[a] = Values::read(keys, place, at < end);
            value[a] = Values::read(values, place, at < end);
        }
    };
    read(begin + stream, min(end, now));
    // Heads are dealt to warps: queries, then the new key.
    const bool has_new = end == all;
    {
        const Turn turn(of, warp < G ? q_norm : k_norm, now);
        wait_for_the_launch_before();
        for (unsigned head = warp; head < G + has_new; head += WARPS) {
            const Turn other = head == warp ? turn : Turn(of, head < G ? q_norm : k_norm, now);
            other.turned(of, head < G ? q_norm != 0 : k_norm != 0, b, head < G ? kv * G + head : of.heads + kv, own + head * d);
        }
    }
    __syncthreads();
    if (has_new) {
        const u64 from = (b * (of.heads + 2 * of.kv_heads) + of.heads + of.kv_heads + kv) * d;
        for (unsigned j = threadIdx.x; j < d; j += THREADS) {
            store_one(keys, in_room + now * stride + j, HALF, own[G * d + j]);
            store_one(values, in_room + now * stride + j, HALF, load_one(qkv, from + j, HALF));
        }
        __syncthreads();
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (begin + stream + streams * a != now) continue;
            const u64 place = (in_room + now * stride) / N + chunk;
            key[a] = Values::read(keys, place, true);
            value[a] = Values::read(values, place, true);
        }
    }
    float q[G][N], sum[G][N], most[G], total[G];
#pragma unroll
    for (int g = 0; g < G; g++) {
        most[g] = LOWEST, total[g] = 0.0f;
#pragma unroll
        for (int k = 0; k < N; k++) {
            // Of powers of two.
            q[g][k] = own[g * d + chunk * N + k] * scale * 1.44269504f;
            sum[g][k] = 0.0f;
        }
    }
    for (unsigned from = begin + stream; from - stream < end; from += streams * AHEAD) {
        if (from - stream > begin) read(from, end);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float score[AHEAD], max = most[g];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                float x = 0.0f;
#pragma unroll
                for (int k = 0; k < N; k++) x += q[g][k] * key[a][k];
                for (unsigned apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
                score[a] = from + streams * a < end ? x : LOWEST;
                max = fmaxf(max, score[a]);
            }
            const float shrink = exp2f(most[g] - max);
            most[g] = max;
            total[g] *= shrink;
#pragma unroll
            for (int k = 0; k < N; k++) sum[g][k] *= shrink;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const float p = from + streams * a < end ? exp2f(score[a] - max) : 0.0f;
                total[g] += p;
#pragma unroll
                for (int k = 0; k < N; k++) sum[g][k] += p * value[a][k];
            }
        }
    }
    // Nobody reads the queries any more.
    __syncthreads();
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (chunk == 0) of_stream[stream][g] = make_float2(most[g], total[g]);
#pragma unroll
        for (int k = 0; k < N; k++) own[(stream * G + g) * d + chunk * N + k] = sum[g][k];
    }
    __syncthreads();
    for (unsigned at = threadIdx.x; at < G * d; at += THREADS) {
        const unsigned g = at / d, j = at % d;
        const u64 head = b * of.heads + kv * G + g, to = head * parts + blockIdx.y;
        float max = LOWEST, all_of = 0.0f, x = 0.0f;
        for (unsigned s = 0; s < streams; s++) max = fmaxf(max, of_stream[s][g].x);
        for (unsigned s = 0; s < streams; s++) {
            const float share = exp2f(of_stream[s][g].x - max);
            all_of += share * of_stream[s][g].y;
            x += share * own[(s * G + g) * d + j];
        }
        if (taken == 1) {
            store_one(y, head * d + j, HALF, x / all_of);
            continue;
        }
        sums[to * d + j] = x;
        if (j == 0) stats[to] = make_float2(max, all_of);
    }
    if (taken == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived + blockIdx.x, 1) == taken - 1;
        if (last) arrived[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (unsigned at = threadIdx.x; at < G * d; at += THREADS) {
        const unsigned g = at / d, j = at % d;
        const u64 head = b * of.heads + kv * G + g, from = head * parts;
        float max = LOWEST, total = 0.0f, x = 0.0f;
        for (unsigned part = 0; part < taken; part++) max = fmaxf(max, __ldcg(stats + from + part).x);
#pragma unroll 4
        for (unsigned part = 0; part < taken; part++) {
            const float2 stat = __ldcg(stats + from + part);
            const float share = exp2f(stat.x - max);
            total += share * stat.y;
            x += share * __ldcg(sums + (from + part) * d + j);
        }
        store_one(y, head * d + j, HALF, x / total);
    }
}

#define OF_GROUP(G)                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) decode_attention_##G(ATTEND) {                                                         \
        attend<G>(qkv, q_norm, k_norm, cosines, sines, keys, values, position, sums, stats, arrived, y, heads, kv_heads, head_dim, room, eps,    \
                  scale);                                                                                                                     \
    }

OF_GROUP(1)
OF_GROUP(2)
OF_GROUP(3)
OF_GROUP(4)
OF_GROUP(5)
OF_GROUP(6)
OF_GROUP(7)
OF_GROUP(8)
