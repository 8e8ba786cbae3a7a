//! Dense linear algebra in f64, of row-major matrices in slices: eigenvectors of symmetric matrices, systems of positive definite ones, orthonormal
//! bases, products.
//!
//! All of it is `faer`'s, on one thread, so that the outcome knows nothing of the number of cores. It is a crate of its own because
//! `faer` is generic: whoever calls it compiles it, and here that is once and not with every change of the library.

mod cholesky;
mod eigen;
mod orthonormal;
mod product;

pub use cholesky::solve_positive_definite;
pub use eigen::{Eigen, symmetric_eigen};
pub use orthonormal::orthonormal_rows;
pub use product::{product, product_transposed};
