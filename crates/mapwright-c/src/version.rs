//! Versions: of the library, and of its binary interface.

use std::ffi::{c_char, c_int};

use crate::error::quietly;

/// The version of the binary interface that this header describes: the number in the library's soname, libmapwright.so.N. It grows when
/// a program that was linked with an older library could break.
pub const MAPWRIGHT_ABI_VERSION: c_int = 0;

/// The version of the library, such as "0.1.0". Never NULL; never freed. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_version() -> *const c_char {
    quietly(c"".as_ptr(), || concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast())
}

/// The version as a number: major * 1000000 + minor * 1000 + patch. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_version_number() -> c_int {
    quietly(0, || {
        let part = |text: &str| text.parse::<c_int>().unwrap_or(0);
        let (major, minor) = (part(env!("CARGO_PKG_VERSION_MAJOR")), part(env!("CARGO_PKG_VERSION_MINOR")));
        major * 1_000_000 + minor * 1000 + part(env!("CARGO_PKG_VERSION_PATCH"))
    })
}

/// The version of the binary interface of the library that is loaded: compare it with MAPWRIGHT_ABI_VERSION, which is that of the
/// header. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_abi_version() -> c_int {
    quietly(0, || MAPWRIGHT_ABI_VERSION)
}
