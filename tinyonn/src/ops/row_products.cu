// Products of a few rows with lines of matrices that are each read once for all of them: how rows are held, which warp or block takes which lines, and in what order sums are formed.
//
// Legend: b rows of x (ROWS at most), d inputs. x [b, d] and lines [d] are bf16 where KEPT_IN_BF16, else f32. Every block holds the rows of x in shared memory, normalised where a
// norm's weight is given. Of one or two rows a warp takes an output; of more, in bf16, a block takes sixteen lines by tensor cores, its warps a share of d each. Where outputs are
// known beforehand (ALL) their first lines are under way before the launch ahead has ended; whoever must find them first has waited already.

const int THREADS = 256;
const int WARPS = THREADS / 32;
const bool HALF = KEPT_IN_BF16;
const int AHEAD = 8;  // chunks of lines that a lane has under way
const int FETCH = 2;  // lines of a warp that are fetched into the second cache while it waits
const int BLOCKS = 4; // of a multiprocessor, where two launches are to lie beside each other

extern __shared__ uint4 held[]; // x [b, d], in chunks; behind it what a kernel asks for

struct Rows {
    const void *x, *norm; // the norm's weight [d], or 0
    unsigned count, chunks;
    float eps;
};

// Whether tensor cores multiply.
template <int ROWS>
__device__ constexpr bool by_tiles() { return HALF && ROWS == 8; }

// From one row of x to the next, in chunks; of tiles so that the rows that are read at once lie in other banks.
template <int ROWS>
__device__ unsigned stride(const Rows& of) { return of.chunks + (by_tiles<ROWS>() ? 4 : 0); }

// What lies behind the rows of x.
template <int ROWS>
__device__ void* behind_rows(const Rows& of) { return held + of.count * stride<ROWS>(of); }

// Rows of x to shared memory, normalised; `first` is the norm's chunk threadIdx.x, which is read before the launch ahead has ended.
template <int ROWS>
__device__ void hold(const Rows& of, const Chunk<HALF>& first) {
    typedef Chunk<HALF> Values;
    const int N = Values::N;
    const unsigned apart = stride<ROWS>(of);
    if (!of.norm) {
        for (unsigned b = 0; b < of.count; b++) {
            for (unsigned c = threadIdx.x; c < of.chunks; c += THREADS) Values::read(of.x, b * of.chunks + c, true).write(held, b * apart + c);
        }
        __syncthreads();
        return;
    }
    __shared__ float squares[WARPS][ROWS];
#pragma unroll
    for (unsigned b = 0; b < ROWS; b++) {
        float sum = 0.0f;
        for (unsigned c = threadIdx.x; b < of.count && c < of.chunks; c += THREADS) {
            const Values x = Values::read(of.x, b * of.chunks + c, true);
            for (int k = 0; k < N; k++) sum += x[k] * x[k];
            x.write(held, b * apart + c);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32][b] = sum;
    }
    __syncthreads();
    for (unsigned b = 0; b < of.count; b++) {
        float sum = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) sum += squares[warp][b];
        const float root = 1.0f / sqrtf(sum / (of.chunks * N) + of.eps);
        // Every thread reads what it has written itself.
        for (unsigned c = threadIdx.x; c < of.chunks; c += THREADS) {
            const Values x = Values::read(held, b * apart + c, true), w = c == threadIdx.x ? first : Values::read(of.norm, c, true);
            float y[N];
            for (int k = 0; k < N; k++) y[k] = as_stored(x[k] * root, HALF) * w[k];
            Values::of(y).write(held, b * apart + c);
        }
    }
    __syncthreads();
}

// Chunks of lines of M matrices on their way.
template <int M>
struct Lines {
    static const int EACH = AHEAD / M;
    const void* line[M];
    Chunk<HALF> own[M][EACH];

    __device__ void read(unsigned from, unsigned chunks, bool there) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int a = 0; a < EACH; a++) own[m][a] = Chunk<HALF>::read(line[m], from + 32 * a, there && from + 32 * a < chunks);
        }
    }
};

// What an output needs besides its sum: read by the lane that writes it, before the sum is there.
struct Beside { float x, y, z; };

// Outputs in their order.
struct Every {
    __device__ unsigned operator()(unsigned j) const { return j; }
};

// The lines of a place on their way to the second cache.
template <int M, class Where>
__device__ void fetch_lines(unsigned place, unsigned outputs, unsigned chunks, Where where) {
    if (threadIdx.x % 32 >= M || place >= outputs) return;
    const void* line[M];
    where(place, line);
    fetch(M > 1 && threadIdx.x % 32 ? line[M - 1] : line[0], chunks * 16);
}

// A warp's sums of an output, of up to two rows or in f32.
template <int ROWS, int M, bool ALL, class Item, class Where, class Early, class Write>
__device__ void products_by_lines(const Rows& of, unsigned outputs, Item item, Where where, Early early, Write write) {
    typedef Chunk<HALF> Values;
    const int EACH = Lines<M>::EACH;
    const unsigned lane = threadIdx.x % 32, apart = gridDim.x * WARPS;
    unsigned place = blockIdx.x * WARPS + threadIdx.x / 32, output = 0;
    Lines<M> lines;
    Values norm = Values::read(of.norm, threadIdx.x, of.norm && threadIdx.x < of.chunks);
    bool asked;
    auto begin = [&]() {
        asked = place < outputs;
        if (asked) where(output = item(place), lines.line);
        lines.read(lane, of.chunks, asked);
    };
    begin();
    if (ALL) {
        if (M > 1 && asked && lane < M && of.chunks > 32 * EACH) {
            const void* line[M];
            where(output, line);
            fetch((const uint4*)(lane ? line[M - 1] : line[0]) + 32 * EACH, (of.chunks - 32 * EACH) * 16);
        }
#pragma unroll
        for (int ahead = 1; ahead <= FETCH / M; ahead++) fetch_lines<M>(place + ahead * apart, outputs, of.chunks, where);
        wait_for_the_launch_before();
    }
    Beside beside = {};
    if (asked && lane < of.count) beside = early(output, lane);
    hold<ROWS>(of, norm);
    while (asked) {
        float sums[ROWS][M];
#pragma unroll
        for (int b = 0; b < ROWS; b++) {
#pragma unroll
            for (int m = 0; m < M; m++) sums[b][m] = 0.0f;
        }
        for (unsigned from = 0;;) {
#pragma unroll
            for (int a = 0; a < EACH; a++) {
                const unsigned at = from + lane + 32 * a;
                if (at >= of.chunks) continue;
#pragma unroll
                for (int b = 0; b < ROWS; b++) {
                    if (b >= of.count) continue;
                    const Values x = Values::read(held, b * of.chunks + at, true);
#pragma unroll
                    for (int m = 0; m < M; m++) {
#pragma unroll
                        for (int k = 0; k < Values::N; k++) sums[b][m] += lines.own[m][a][k] * x[k];
                    }
                }
            }
            from += 32 * EACH;
            if (from >= of.chunks) break;
            lines.read(from + lane, of.chunks, true);
        }
        const unsigned own = output;
        const Beside of_own = beside;
        place += apart;
        begin();
        if (asked && lane < of.count) beside = early(output, lane);
#pragma unroll
        for (int b = 0; b < ROWS; b++) {
#pragma unroll
            for (int m = 0; m < M; m++) sums[b][m] = warp_sum(sums[b][m]);
            if (b < of.count && lane == b) write(own, b, of_own, sums[b]);
        }
    }
}

// A block's sums of sixteen lines, those of one matrix or eight of either of two, by tensor cores: x is a product's right operand, whose columns are its rows. A lane takes one chunk of four that
// lie side by side: its values are an operand's, whatever the order of d, if those of x are the same.
template <int ROWS, int M, bool ALL, class Item, class Where, class Early, class Write>
__device__ void products_by_tiles(const Rows& of, unsigned outputs, Item item, Where where, Early early, Write write) {
    typedef Chunk<HALF> Values;
    const unsigned TILE = 16 / M;
    __shared__ float4 sums[WARPS][32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, own_chunk = lane % 4, apart = stride<ROWS>(of);
    const unsigned tiles = (outputs + TILE - 1) / TILE, segments = (of.chunks + 3) / 4;
    const void* from_line[2];
    Values own[2][AHEAD];
    bool asked[2];
    Values norm = Values::read(of.norm, threadIdx.x, of.norm && threadIdx.x < of.chunks);
    auto begin = [&](unsigned tile) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned place = tile * TILE + row + (M == 1 ? 8 * half : 0);
            const void* line[M];
            asked[half] = tile < tiles && place < outputs;
            if (asked[half]) where(item(place), line);
            from_line[half] = line[M == 1 ? 0 : half];
        }
    };
    auto read = [&](unsigned segment) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned at = 4 * (segment + WARPS * a) + own_chunk;
                own[half][a] = Values::read(from_line[half], at, asked[half] && at < of.chunks);
            }
        }
    };
    begin(blockIdx.x);
    read(warp);
    if (ALL) wait_for_the_launch_before();
    hold<ROWS>(of, norm);
    for (unsigned tile = blockIdx.x; tile < tiles;) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (unsigned from = warp;;) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const unsigned segment = from + WARPS * a, at = 4 * segment + own_chunk;
                if (segment >= segments) continue;
                const Values x = Values::read(held, row * apart + at, row < of.count && at < of.chunks), &w = own[0][a], &v = own[1][a];
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                                 : "r"(w.words[k]), "r"(v.words[k]), "r"(w.words[k + 1]), "r"(v.words[k + 1]), "r"(x.words[k]), "r"(x.words[k + 1]));
                }
            }
            from += WARPS * AHEAD;
            if (from - warp >= segments) break;
            read(from);
        }
        const unsigned first = tile * TILE;
        tile += gridDim.x;
        begin(tile);
        read(warp);
        sums[warp][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        __syncthreads();
        const unsigned place = first + threadIdx.x / 8, b = threadIdx.x % 8;
        if (threadIdx.x < 8 * TILE && place < outputs && b < of.count) {
            float all[M];
#pragma unroll
            for (int m = 0; m < M; m++) {
                const unsigned line = threadIdx.x / 8 + 8 * m, from = line % 8 * 4 + b / 2, at = line / 8 * 2 + b % 2;
                all[m] = 0.0f;
                for (int other = 0; other < WARPS; other++) all[m] += ((const float*)&sums[other][from])[at];
            }
            const unsigned output = item(place);
            write(output, b, early(output, b), all);
        }
        __syncthreads();
    }
}

// Σ_d x w of every output and row: `item(place)` is the output at a place, `where(output, line)` says where its lines lie, `early(output, b)` reads what is needed besides,
// and `write(output, b, beside, sums)` is called once for each.
template <int ROWS, int M, bool ALL, class Item, class Where, class Early, class Write>
__device__ void products(const Rows& of, unsigned outputs, Item item, Where where, Early early, Write write) {
    if constexpr (by_tiles<ROWS>()) products_by_tiles<ROWS, M, ALL>(of, outputs, item, where, early, write);
    else products_by_lines<ROWS, M, ALL>(of, outputs, item, where, early, write);
}

__device__ float activated(float g, float u, u64 gelu) {
    return gelu ? g * (0.5f + 0.5f * erff(g * 0.70710678f)) * u : g / (1.0f + expf(-g)) * u;
}
