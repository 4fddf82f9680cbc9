//! The header that is checked in is what cbindgen makes of the source. `cargo xtask header` writes it anew.

use std::path::Path;

/// Set, the header is written instead of compared.
const WRITE: &str = "MAPWRIGHT_WRITE_HEADER";

/// Types of parameters that are pointers with a name in Rust.
const POINTERS: [(&str, &str); 7] = [
    ("Text ", "const char *"),
    ("Input ", "const void *"),
    ("Output ", "void *"),
    ("Record_Stats ", "mapwright_stats *"),
    ("Record_CacheStat ", "mapwright_cache_stats *"),
    ("Items_RangeOf ", "const mapwright_range *"),
    ("Room_Bytes ", "mapwright_bytes *"),
];

/// A line of a signature, in C.
fn in_c(line: &str) -> String {
    let is_comment = line.trim_start().starts_with(['*', '/']);
    let named = POINTERS.iter().filter(|_| !is_comment).find_map(|(rust, c)| {
        let (before, after) = line.split_once(rust).filter(|(before, _)| before.ends_with([' ', '(']))?;
        Some(format!("{before}{c}{after}"))
    });
    named.unwrap_or_else(|| line.to_owned()).trim_end().to_owned() + "\n"
}

fn made() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // The order of the groups in the header.
    let groups = [
        "version", "error", "stats", "pager", "options", "pointers", "map", "pins", "commit", "shaped",
        "mapping", "shared", "cache",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for group in groups {
        builder = builder.with_src(root.join(format!("src/{group}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    let text = String::from_utf8(text).unwrap();
    // Those of generic types can't be excluded.
    let generic = [" *Record_", " *Items_", " *Room_"];
    let is_generic =
        |line: &&str| line.starts_with("typedef ") && generic.iter().any(|name| line.contains(name));
    let lines = text.lines().filter(|line| !is_generic(line));
    let made: String = lines.map(in_c).collect();
    made.replace("\n\n\n", "\n\n")
}

#[test]
fn the_header_is_that_of_the_source() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mapwright.h");
    let made = made();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap();
    let differs = there.lines().zip(made.lines()).position(|(there, made)| there != made);
    assert!(
        there == made,
        "line {}: run cargo xtask header, and look at the change",
        differs.unwrap_or(0) + 1
    );
}
