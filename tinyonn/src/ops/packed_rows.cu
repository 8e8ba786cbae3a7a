// Rows that learn, one behind another, and back (packed_rows.rs): the block of a row counts the learning rows before it, and copies its own where it is held.

// Eleven words of eight bytes, as packed_rows.rs writes them.
struct Rows {
    char* values;               // of a range of a bucket
    const unsigned char* learn; // a mark a row
    u64 rows, width;            // width in bytes, and so are begin, from, to, place and step
    u64 first;                  // its first block
    u64 begin;                  // where in the bucket the weight begins
    u64 from, to;               // the range that is held
    u64 place;                  // where in the packed rows its own begin
    u64 most;                   // so many rows at most
    u64 step;                   // 16 where every row can be copied by as many bytes at once, else those of a value
};

// Rows before `row` that learn, in every thread.
__device__ u64 before(const unsigned char* learn, u64 row) {
    __shared__ unsigned sums[32];
    unsigned count = 0;
    for (u64 at = threadIdx.x; at < row; at += blockDim.x) count += learn[at] != 0;
    for (int step = 16; step > 0; step /= 2) count += __shfl_down_sync(0xffffffffu, count, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = count;
    __syncthreads();
    u64 all = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) all += sums[warp];
    return all;
}

template <typename T>
__device__ void copy(const Rows& of, u64 row, u64 at, char* packed, bool out) {
    const u64 start = of.begin + row * of.width; // in the bucket
    for (u64 byte = threadIdx.x * sizeof(T); byte < of.width; byte += blockDim.x * sizeof(T)) {
        const u64 place = start + byte;
        if (place < of.from || place >= of.to) continue;
        T* own = (T*)(of.values + (place - of.from));
        T* other = (T*)(packed + of.place + at * of.width + byte);
        if (out) *other = *own;
        else *own = *other;
    }
}

extern "C" __global__ void packed_rows(const Rows* table, u64 count, char* packed, u64 out) {
    u64 low = 0, high = count - 1;
    while (low < high) {
        const u64 middle = (low + high + 1) / 2;
        if (table[middle].first <= blockIdx.x) low = middle;
        else high = middle - 1;
    }
    const Rows of = table[low];
    const u64 row = blockIdx.x - of.first;
    if (!of.learn[row]) return;
    const u64 at = before(of.learn, row);
    if (at >= of.most) return;
    if (of.step == 16) copy<uint4>(of, row, at, packed, out);
    else if (of.step == 4) copy<unsigned>(of, row, at, packed, out);
    else copy<unsigned short>(of, row, at, packed, out);
}
