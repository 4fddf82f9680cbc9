//! Gives the shared library its soname: programs that link with it look for this name when they start.

/// The same as `MAPWRIGHT_ABI_VERSION` in `src/version.rs`: a test compares them.
const ABI: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmapwright.so.{ABI}");
}
