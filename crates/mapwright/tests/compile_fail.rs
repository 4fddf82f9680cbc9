//! What must not compile: each file in `compile_fail` breaks one rule, and the compiler's words for it are beside it.
//!
//! After a change of the toolchain the words may change: look at them, and write them anew with `TRYBUILD=overwrite`.
#![allow(missing_docs)]

#[test]
fn what_would_be_unsound_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
