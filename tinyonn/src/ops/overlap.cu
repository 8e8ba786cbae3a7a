// Launches that begin before the one ahead of them has ended (compute capability 9.0 and up; elsewhere these do nothing): what depends on no earlier launch, such as reading
// weights, is under way by the time that the other's last blocks are done.

// Behind it all that earlier launches wrote is there. Every thread comes here, before it reads or writes what they do.
__device__ void wait_for_the_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next launch may begin, as soon as every block has come here and there is room for it.
__device__ void let_the_next_launch_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Has bytes fetched into the second cache, for which nobody waits; address and count are multiples of sixteen.
__device__ void fetch(const void* from, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (bytes) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}
