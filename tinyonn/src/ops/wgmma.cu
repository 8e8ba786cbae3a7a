// Products of tiles by Hopper's warpgroups (wgmma, of compute capability 9.0a), tiles brought by its copy engine (TMA) behind barriers in
// shared memory. Goes behind tiles.cu.
//
// A tile of bf16 has panels of 64 columns, one behind the other, each of rows of 128 bytes whose 16-byte chunk c of row r lies at place
// c ^ (r & 7): what the copy engine and the tensor cores call a swizzle of 128 bytes. Panels begin at multiples of 1024 bytes.
// A warpgroup is four warps; a thread's sums c[n][e] of a product of 64 rows are those of row 16 (warp of the warpgroup) + own_row(0, e / 2)
// and of column own_column(n) + e % 2.

const u32 LINE = 128;      // bytes of a panel's row
const int PANELS = CHUNKS / 8; // of a row of D values

// --- Barriers in shared memory. Each goes through phases, named by their parity: 0, 1, 0, ...

__device__ void make_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// So that the copy engine sees the barriers that this thread has made.
__device__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and holds the phase until as many bytes have been copied.
__device__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Until the phase of this parity is over; the one before the first has parity 1.
__device__ void wait(u32 barrier, u32 parity) {
    u32 over;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!over);
}

// A barrier of `threads` threads, of number 1 to 15.
__device__ void meet(int number, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
__device__ void pass(int number, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

// --- The copy engine.

// What the driver makes of a tensor [batches, rows, heads, D] to copy boxes of 64 rows and 64 columns of a head from it or to it: rows behind
// the last are zeros, and are not written.
struct alignas(64) Map { u64 words[16]; };

const u32 BOX = 64 * LINE; // bytes

__device__ void copy_box(u32 to, const Map& map, int column, int head, int row, int batch, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
                     shared_address(to)), "l"(&map), "r"(column), "r"(head), "r"(row), "r"(batch), "r"(shared_address(barrier)) : "memory");
}

// A tile of ROWS rows.
template <int ROWS>
__device__ void copy_tile(u32 to, const Map& map, int head, int row, int batch, u32 barrier) {
#pragma unroll
    for (int box = 0; box < PANELS * (ROWS / 64); box++) {
        const int panel = box / (ROWS / 64), part = box % (ROWS / 64);
        copy_box(to + panel * ROWS * LINE + part * BOX, map, panel * 64, head, row + part * 64, batch, barrier);
    }
}

__device__ void copy_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

__device__ void store_box(const Map& map, int column, int head, int row, int batch, u32 from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map), "r"(column), "r"(head),
                 "r"(row), "r"(batch), "r"(shared_address(from)) : "memory");
}

__device__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until shared memory has been read by all of this thread's stores.
__device__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// What this thread has written to shared memory comes before what the copy engine and the tensor cores read from here on.
__device__ void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- Registers of a block are shared out anew among its warpgroups.

template <int N>
__device__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// --- Products, begun here and done later.

__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most N of the groups are still under way.
template <int N>
__device__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Sums are read behind this, and not before.
template <int N>
__device__ void settle(float (&c)[N][4]) {
#pragma unroll
    for (int i = 0; i < N * 4; i++) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

// Left operands stay in their registers as far as here.
template <int K>
__device__ void keep(const u32 (&a)[K][4]) {
#pragma unroll
    for (int i = 0; i < K * 4; i++) asm volatile("" ::"r"(a[i / 4][i % 4]) : "memory");
}

// An operand in shared memory: where its values begin, and for one that is read along columns how far apart its panels are.
__device__ u64 operand(u32 offset, u32 panel = 16) {
    return 1ull << 62 | (u64)(1024 / 16) << 32 | (u64)(panel / 16) << 16 | (shared_address(offset) & 0x3ffff) / 16;
}

#define SUMS(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SUMS_32(c, n) SUMS(c, n), SUMS(c, n + 1), SUMS(c, n + 2), SUMS(c, n + 3), SUMS(c, n + 4), SUMS(c, n + 5), SUMS(c, n + 6), SUMS(c, n + 7)
#define FIRST_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FIRST_64 FIRST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FIRST_128 FIRST_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// c = A Bᵀ or, if `add`, c += A Bᵀ, of 64 and 8 N rows of 16 values. An operand lies by rows (0) or, where its lines run along the sum, by columns (1).
template <int A_COLUMNS = 0, int B_COLUMNS = 0>
__device__ void begin_product(float (&c)[8][4], u64 a, u64 b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FIRST_32 "}, %32, %33, p, 1, 1, %35, %36; }"
                 : SUMS_32(c, 0) : "l"(a), "l"(b), "r"((int)add), "n"(A_COLUMNS), "n"(B_COLUMNS) : "memory");
}

template <int A_COLUMNS = 0, int B_COLUMNS = 0>
__device__ void begin_product(float (&c)[16][4], u64 a, u64 b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FIRST_64 "}, %64, %65, p, 1, 1, %67, %68; }"
                 : SUMS_32(c, 0), SUMS_32(c, 8) : "l"(a), "l"(b), "r"((int)add), "n"(A_COLUMNS), "n"(B_COLUMNS) : "memory");
}

template <int A_COLUMNS = 0, int B_COLUMNS = 0>
__device__ void begin_product(float (&c)[32][4], u64 a, u64 b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" FIRST_128 "}, %128, %129, p, 1, 1, %131, %132; }"
                 : SUMS_32(c, 0), SUMS_32(c, 8), SUMS_32(c, 16), SUMS_32(c, 24) : "l"(a), "l"(b), "r"((int)add), "n"(A_COLUMNS), "n"(B_COLUMNS) : "memory");
}

// c = A B or c += A B, of 64 rows of 16 values in registers and of 16 rows of 8 N values.
__device__ void begin_product(float (&c)[8][4], const u32 (&a)[4], u64 b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FIRST_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                 : SUMS_32(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add) : "memory");
}

__device__ void begin_product(float (&c)[16][4], const u32 (&a)[4], u64 b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FIRST_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                 : SUMS_32(c, 0), SUMS_32(c, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add) : "memory");
}

// c = A Bᵀ, of 64 rows of a tile of A_ROWS and 8 N rows of one of B_ROWS.
template <int A_ROWS, int B_ROWS, int N>
__device__ void begin_rows(float (&c)[N][4], u64 a, u64 b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        const u32 panel = k / 4, in_panel = k % 4 * 32;
        begin_product(c, a + (panel * A_ROWS * LINE + in_panel) / 16, b + (panel * B_ROWS * LINE + in_panel) / 16, k > 0);
    }
}

// c = A B or, if `add`, c += A B, of left operands and 16 K rows of a tile.
template <int K, int N>
__device__ void begin_columns(float (&c)[N][4], const u32 (&a)[K][4], u64 b, bool add) {
#pragma unroll
    for (int k = 0; k < K; k++) begin_product(c, a[k], b + k * 16 * LINE / 16, add || k > 0);
}

// The sums of a product as left operands of the next.
template <int N>
__device__ void as_left(u32 (&a)[N / 2][4], const float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        a[n / 2][n % 2 * 2] = packed(c[n][0], c[n][1]);
        a[n / 2][n % 2 * 2 + 1] = packed(c[n][2], c[n][3]);
    }
}

// An 8 × 8 matrix, of which a thread has two values of row lane / 4, from columns 2 (lane % 4) on.
__device__ u32 transposed(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Four 8 × 8 matrices into rows that begin at the offsets that lanes 0 to 7, 8 to 15, ... name.
__device__ void store_matrices(u32 offset, u32 x0, u32 x1, u32 x2, u32 x3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(offset)), "r"(x0), "r"(x1), "r"(x2),
                 "r"(x3) : "memory");
}

// Sums, each row's times its scale, to rows row, row + 1, ... of a head, by a warpgroup that meets at barrier `number`, through 64 rows from
// `tile` on, of panels `panel` bytes apart, that it alone uses. The first thread of the warpgroup waits for the store.
__device__ void store_sums(const Map& map, int head, int row, int batch, u32 tile, u32 panel, const float (&c)[D / 8][4], const float (&scale)[2], int number) {
    const int in_group = threadIdx.x % 128, line = in_group / 32 * 16 + lane() % 16;
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
        const u32 to = tile + n / 8 * panel + line * LINE + ((n % 8 + lane() / 16) ^ (line & 7)) * 16;
        store_matrices(to, packed(c[n][0] * scale[0], c[n][1] * scale[0]), packed(c[n][2] * scale[1], c[n][3] * scale[1]),
                       packed(c[n + 1][0] * scale[0], c[n + 1][1] * scale[0]), packed(c[n + 1][2] * scale[1], c[n + 1][3] * scale[1]));
    }
    publish_writes();
    meet(number, 128);
    if (in_group == 0) {
#pragma unroll
        for (int i = 0; i < PANELS; i++) store_box(map, i * 64, head, row, batch, tile + i * panel);
        commit_stores();
    }
}
