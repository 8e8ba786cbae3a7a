//! Each rule of `#[moe(..)]` as a compiler's message: `.stderr` files hold what a user sees, spans included.
//! After a deliberate change: `TRYBUILD=overwrite cargo test -p tinyonn-macros --test ui`.

#[test]
fn refusals() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
