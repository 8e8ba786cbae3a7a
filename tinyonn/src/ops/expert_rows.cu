// Which rows each expert computes: tokens sorted by expert, from gates of which most are zero (grouped_mlp.rs has the whole).
//
// Legend: T tokens, E experts, w [T, E] gates, an expert taken where w is not 0; `most` experts of a token; W = ⌈E / 32⌉ words of bits.
// A row is a (token, expert) that is taken; rows are numbered by expert, and within an expert by token. Nothing is added by atomics.
//
//   taken   the bits of every token, [T, W]; of more than `most` open gates the first, for there is room for no more rows.
//   counts  the tokens of every expert, [E].
//   rows    starts [E + 1]; of every row its token and its gate; of every token its rows, [T, most]; and tiles of TILE_ROWS rows of one
//           expert each: the expert and the first row, [tiles, 2]. Entries behind the last tile name expert NOBODY.

typedef unsigned u32;

const u32 NOBODY = 0xffffffffu;
const int TILE_ROWS = 128;

extern "C" __global__ void taken(const void* w, u32* bits, u64 tokens, u64 experts, u64 most, u64 half) {
    const u64 token = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const u32 words = (experts + 31) / 32;
    int left = most;
    for (u32 word = 0; word < words; word++) {
        const u64 expert = word * 32 + lane;
        const bool open = expert < experts && load_one(w, token * experts + expert, half) != 0.0f;
        u32 found = __ballot_sync(0xffffffffu, open);
        while (__popc(found) > left) found &= ~(0x80000000u >> __clz(found));
        left -= __popc(found);
        if (lane == 0) bits[token * words + word] = found;
    }
}

// Whether a token before `end` has bit `expert`. Nothing is written to bits while this reads them: loads need not wait for stores, nor for each other.
__device__ bool has(const u32* bits, u64 words, u64 token, u64 end, u32 expert) {
    return token < end && (__ldg(bits + token * words + expert / 32) >> (expert % 32) & 1);
}

// The tokens of a warp's share whose bit `expert` is set.
__device__ u32 own_tokens(const u32* bits, u64 words, u64 from, u64 end, u32 expert) {
    u32 count = 0;
#pragma unroll 8
    for (u64 token = from; token < end; token += 32) {
        count += __popc(__ballot_sync(0xffffffffu, has(bits, words, token + threadIdx.x % 32, end, expert)));
    }
    return count;
}

// Tokens are dealt to the warps of a block in runs of a multiple of 32.
__device__ u64 run_of_a_warp(u64 tokens) {
    const u64 warps = blockDim.x / 32;
    return (tokens + 32 * warps - 1) / (32 * warps) * 32;
}

extern "C" __global__ void __launch_bounds__(256) counts(const u32* bits, u32* count, u64 tokens, u64 words) {
    __shared__ u32 of_warp[8];
    const u64 run = run_of_a_warp(tokens), from = run * (threadIdx.x / 32);
    const u32 own = own_tokens(bits, words, from, min(from + run, tokens), blockIdx.x);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (int warp = 0; warp < 8; warp++) sum += of_warp[warp];
        count[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
rows(const u32* bits, const void* w, const u32* count, u32* starts, u32* tokens_r, float* gates_r, u32* rows_tk, u32* tiles, u64 tokens, u64 experts,
     u64 words, u64 most, u64 room, u64 half) {
    __shared__ u32 of_warp[8], before_rows, before_tiles;
    const u32 expert = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (warp == 0) {
        // Rows and tiles of the experts before this one: sums of whole numbers, in whatever order.
        u32 rows = 0, cut = 0;
        for (u32 other = lane; other < expert; other += 32) {
            rows += count[other];
            cut += (count[other] + TILE_ROWS - 1) / TILE_ROWS;
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            rows += __shfl_xor_sync(0xffffffffu, rows, lanes);
            cut += __shfl_xor_sync(0xffffffffu, cut, lanes);
        }
        if (lane == 0) before_rows = rows, before_tiles = cut;
    }
    const u64 run = run_of_a_warp(tokens), from = run * warp, end = min(from + run, tokens);
    const u32 own = own_tokens(bits, words, from, end, expert);
    if (lane == 0) of_warp[warp] = own;
    __syncthreads();
    const u32 total = count[expert], cut = (total + TILE_ROWS - 1) / TILE_ROWS;
    if (threadIdx.x == 0) {
        starts[expert] = before_rows;
        if (expert + 1 == experts) starts[experts] = before_rows + total;
    }
    for (u64 tile = threadIdx.x; tile < cut; tile += blockDim.x) {
        tiles[2 * (before_tiles + tile)] = expert;
        tiles[2 * (before_tiles + tile) + 1] = before_rows + tile * TILE_ROWS;
    }
    if (expert + 1 == experts) {
        for (u64 tile = before_tiles + cut + threadIdx.x; tile < room; tile += blockDim.x) tiles[2 * tile] = NOBODY;
    }
    u32 row = before_rows;
    for (u32 other = 0; other < warp; other++) row += of_warp[other];
#pragma unroll 4
    for (u64 token = from; token < end; token += 32) {
        const u64 own = token + lane;
        const bool open = has(bits, words, own, end, expert);
        const u32 found = __ballot_sync(0xffffffffu, open);
        if (open) {
            const u32 at = row + __popc(found & ((1u << lane) - 1));
            u32 rank = __popc(__ldg(bits + own * words + expert / 32) & ((1u << expert % 32) - 1));
            for (u32 word = 0; word < expert / 32; word++) rank += __popc(__ldg(bits + own * words + word));
            tokens_r[at] = own;
            gates_r[at] = load_one(w, own * experts + expert, half);
            rows_tk[own * most + rank] = at;
        }
        row += __popc(found);
    }
}
