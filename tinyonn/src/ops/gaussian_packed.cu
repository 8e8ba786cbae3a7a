// How the kernels of Gaussian routers find their parameters (gaussian_routing.rs makes the table and packs the parameters).

struct Router {
    unsigned first;      // Gaussian of all
    unsigned gaussians;  // c
    unsigned r;
    unsigned column;     // of z
    unsigned parameters; // where they begin in the packed ones
    unsigned sums;       // where they begin in a row of sums: [2, c, r] and [c], filled up to fours
    unsigned tile;       // the first block of gaussian_sums that is its
    unsigned unused;
};

// Parameters as kernels read them: means and precisions by value [r, c] and by Gaussian [c, r], rows filled up with zeros to fours; log-variances summed
// over values, log-priors, and what a mean log-density is multiplied by.
struct Packed {
    float *mean_rc, *precision_rc, *mean_cr, *precision_cr, *logs, *priors, *factor;
    unsigned columns, width; // c and r, filled up

    __device__ Packed(float* at, unsigned gaussians, unsigned r) {
        columns = (gaussians + 3) / 4 * 4, width = (r + 3) / 4 * 4;
        mean_rc = at;
        precision_rc = mean_rc + width * columns;
        mean_cr = precision_rc + width * columns;
        precision_cr = mean_cr + width * columns;
        logs = precision_cr + width * columns;
        priors = logs + columns;
        factor = priors + columns;
    }
};
