// The nodes of a hierarchy of routers, numbered through all levels, from the top (hierarchy.rs makes the table): of each the first node of its router and the one behind its last,
// how many choices that router takes, the node above (itself at the top), and the first node below and the one behind the last.

struct Node {
    unsigned first, end, k, above, below, below_end;
};

// What choices are ranked by: what is no number comes first.
__device__ float as_key(float x) { return x == x ? x + 0.0f : __int_as_float(0x7f800000); }

__device__ float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}
