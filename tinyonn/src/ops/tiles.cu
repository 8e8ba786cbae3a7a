// Tiles of bf16 in shared memory, and products of them on tensor cores, for compute capability 8.0 and later: what attention.cu,
// expert_products.cu and their forms for Hopper are made of.
//
// A tile has rows of D = ROW_VALUES values and is named by the offset of its first byte. ROW_VALUES, 64 or 128, is defined before this text.

typedef unsigned short u16; // The bits of a bf16.
typedef unsigned u32;

const int D = ROW_VALUES;
const int CHUNKS = D / 8;     // of 16 bytes, a row
const u32 ROW = 2 * D;        // bytes

// --- One instruction each.

extern __shared__ __align__(1024) uint4 shared[];

__device__ u32 shared_address(u32 offset) { return (u32)__cvta_generic_to_shared(shared) + offset; }

// Sixteen bytes from global to shared memory, later: zeros unless `there`.
__device__ void copy16(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ void copy8(u32 to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 8 : 0) : "memory");
}

// Until this thread's copies are there.
__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What this thread has begun to copy since the last call is a group.
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most N of the groups are still under way.
template <int N>
__device__ void wait_for_groups() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8 × 8 matrices, whose rows begin at the offsets that lanes 0 to 7, 8 to 15, ... name.
__device__ void load_matrices(u32 (&x)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(offset)) : "memory");
}

__device__ void load_transposes(u32 (&x)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(offset)) : "memory");
}

// c += a b, of 16 × 16 and 16 × 8 values.
__device__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values rounded to bf16, the first in the low half.
__device__ u32 packed(float low, float high) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

// The two values of such a pair.
__device__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two values that follow one another, from value `at` on, in bf16 (`half`) or f32; with `add`, added to those that are there.
__device__ void put_pair(void* to, u64 at, bool half, bool add, float first, float second) {
    if (half) {
        u32* pair = (u32*)((u16*)to + at);
        if (add) first += low(*pair), second += high(*pair);
        *pair = packed(first, second);
    } else {
        float2* pair = (float2*)((float*)to + at);
        if (add) first += pair->x, second += pair->y;
        *pair = make_float2(first, second);
    }
}

__device__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// --- Tiles: rows of D values in shared memory, named by the offset of their first byte.

// Where a chunk lies. Eight rows' chunks of one number lie in different banks.
__device__ u32 place(int row, int chunk) { return row * ROW + ((chunk ^ (row & 7)) << 4); }

__device__ int lane() { return threadIdx.x % 32; }

// Rows first, first + 1, ... of a head into a tile, by all threads; zeros from row `count` on.
template <int ROWS, int THREADS>
__device__ void load_tile(u32 tile, const u16* head, u64 stride, int first, int count) {
    const int STEP = THREADS / CHUNKS; // rows at once: a multiple of 8, so that all steps have one place in their rows
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const u16* from = head + (first + row) * stride + chunk * 8;
    const u32 to = tile + place(row, chunk);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const bool there = first + row + i * STEP < count;
        copy16(to + i * STEP * ROW, there ? from + i * STEP * stride : head, there);
    }
}

// c += A Bᵀ, of 16 M rows of one tile and 8 N rows of another.
template <int M, int N>
__device__ void multiply_rows(float (&c)[M][N][4], u32 a_tile, u32 b_tile) {
    const u32 a_lane = place(lane() % 16, lane() / 16);
    const u32 b_lane = place(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(a[m], a_tile + m * 16 * ROW + (a_lane ^ (k << 5)));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_matrices(b, b_tile + n * 8 * ROW + (b_lane ^ (k << 5)));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(c[m][n], a[m], b[0], b[1]);
                multiply(c[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// c += A B, of left operands and 16 K rows of a tile.
template <int M, int K>
__device__ void multiply_columns(float (&c)[M][D / 8][4], const u32 (&a)[M][K][4], u32 b_tile) {
    const u32 b_lane = place(lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 b[4];
            load_transposes(b, b_tile + k * 16 * ROW + (b_lane ^ (n << 4)));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(c[m][n], a[m][k], b[0], b[1]);
                multiply(c[m][n + 1], a[m][k], b[2], b[3]);
            }
        }
    }
}

// The sums of a product as left operands of the next.
template <int M, int N>
__device__ void as_left(u32 (&a)[M][N / 2][4], const float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            a[m][n / 2][n % 2 * 2] = packed(c[m][n][0], c[m][n][1]);
            a[m][n / 2][n % 2 * 2 + 1] = packed(c[m][n][2], c[m][n][3]);
        }
    }
}

// Of the four sums of a thread, c[0] and c[1] are of row lane / 4, c[2] and c[3] of the row 8 below, of columns 2 (lane % 4) and the next.
__device__ int own_row(int m, int half) { return m * 16 + half * 8 + lane() / 4; }
__device__ int own_column(int n) { return n * 8 + lane() % 4 * 2; }

template <int M, int N>
__device__ void fill(float (&c)[M][N][4], float x) {
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) c[i / 4 / N][i / 4 % N][i % 4] = x;
}

// Rows of sums, each times its scale, to rows first, first + 1, ... of a head, by a warp and through rows of a tile that are its own.
template <int M>
__device__ void store_rows(u16* head, u64 stride, int first, int count, u32 tile, const float (&c)[M][D / 8][4], const float (&scale)[M][2]) {
    unsigned char* bytes = (unsigned char*)shared;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 x = packed(c[m][n][2 * half] * scale[m][half], c[m][n][2 * half + 1] * scale[m][half]);
                *(u32*)(bytes + tile + place(own_row(m, half), n) + lane() % 4 * 4) = x;
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; i++) {
        const int row = (i * 32 + lane()) / CHUNKS, chunk = lane() % CHUNKS;
        if (first + row < count) *(uint4*)(head + (first + row) * stride + chunk * 8) = *(const uint4*)(bytes + tile + place(row, chunk));
    }
}
