//! The rules of the source that no compiler knows. Each is a function, with a test that shows it failing.
//!
//! The rules are looked for by words; where a word must be named without being used (here, in the tests of this file) it
//! is put together from two halves.

use crate::docs;
use crate::files::SourceFile;
use crate::source::{code_only, find_word, without_tests};

/// Lines above which a file must say why it is so long.
const MAX_LINES: usize = 800;
/// Where `unsafe` may stand: the system layer, the boundaries to other libraries, and what compares with the kernel's ways.
const MAY_BE_UNSAFE: [&str; 8] = [
    "crates/mapwright-sys/",
    "crates/mapwright-c/src/pointers.rs",
    "crates/mapwright-shim/src/beneath", // .rs, and the folder
    "crates/mapwright-measure/src/raw.rs",
    "crates/mapwright/tests/",
    "crates/mapwright-cli/tests/run_programs/memmap2.rs",
    "crates/mapwright-bench/src/raw.rs",
    "crates/mapwright-bench/benches/",
];
/// Where functions are exported to C. The attribute for that is unsafe to write, because a name may clash with another's; it is
/// the only use of the word there.
const MAY_EXPORT: [&str; 2] = ["crates/mapwright-c/src/", "crates/mapwright-shim/src/calls.rs"];
/// Where a thread may sleep for a fixed time, because there is nothing to wait on: for a memory group to empty, in the checks
/// of stores (for a clock to tick), and in a broken ring (for the kernel to let go of buffers).
const MAY_SLEEP: [&str; 3] = [
    "crates/mapwright-measure/src/cgroup.rs",
    "crates/mapwright/src/stores/conformance.rs",
    "crates/mapwright-sys/src/ring.rs",
];

/// Everything that is wrong, as `path:line: what`.
pub fn check(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        if file.path.ends_with(".rs") {
            found.extend(rust(file));
        }
        found.extend(machine_paths(file));
    }
    found.extend(docs::check_names(files));
    found
}

fn rust(file: &SourceFile) -> Vec<String> {
    let code = code_only(&file.text);
    let library = without_tests(&code);
    let rules = [
        header(file),
        length(file),
        leftovers(file, &code),
        unwraps(file, &library),
        unsafe_code(file, &code),
        sleeps(file, &library),
    ];
    rules.into_iter().flatten().collect()
}

/// Every file says what it is for.
fn header(file: &SourceFile) -> Vec<String> {
    let has_header = file.text.starts_with("//! ");
    if has_header {
        Vec::new()
    } else {
        vec![format!("{}:1: the file does not start with a `//!` header", file.path)]
    }
}

/// Long files have a reason.
fn length(file: &SourceFile) -> Vec<String> {
    let lines = file.text.lines().count();
    let header: String = file
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + " ")
        .collect();
    let has_reason = header.contains(&format!("{MAX_LINES} lines because"));
    if lines <= MAX_LINES || has_reason {
        return Vec::new();
    }
    let what =
        format!("{lines} lines: split it, or say in the header why it has over {MAX_LINES} lines because …");
    vec![format!("{}:1: {what}", file.path)]
}

/// Nothing is left for later.
fn leftovers(file: &SourceFile, code: &str) -> Vec<String> {
    let in_code = ["todo!", "unimplemented!", "#[ignore"];
    let anywhere = [["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut found = Vec::new();
    for (number, line) in (1..).zip(code.lines()) {
        let hit = in_code.iter().find(|word| line.contains(**word));
        found.extend(hit.map(|word| format!("{}:{number}: {word}", file.path)));
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        let hit = anywhere.iter().find(|word| find_word(line, word).is_some());
        found.extend(hit.map(|word| format!("{}:{number}: {word}", file.path)));
    }
    found
}

/// Errors of the environment are not panics.
fn unwraps(file: &SourceFile, library: &str) -> Vec<String> {
    let is_library =
        file.path.starts_with("crates/") && file.path.contains("/src/") && !is_test_module(&file.path);
    if !is_library {
        return Vec::new();
    }
    lines_with(file, library, |line| line.contains(".unwrap()"), ".unwrap() outside tests")
}

/// Unsafe code stays in the layer that is made for it.
fn unsafe_code(file: &SourceFile, code: &str) -> Vec<String> {
    if MAY_BE_UNSAFE.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let may_export = MAY_EXPORT.iter().any(|place| file.path.starts_with(place));
    let is_export = |line: &str| may_export && line.trim() == "#[unsafe(no_mangle)]";
    let is_unsafe = |line: &str| find_word(line, "unsafe").is_some() && !is_export(line);
    lines_with(file, code, is_unsafe, "unsafe code outside mapwright-sys")
}

/// Sleeping is not synchronising.
fn sleeps(file: &SourceFile, library: &str) -> Vec<String> {
    let is_test = is_test_module(&file.path)
        || ["/tests/", "/examples/", "/benches/"].iter().any(|part| file.path.contains(part));
    if is_test || MAY_SLEEP.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    lines_with(file, library, |line| line.contains("thread::sleep"), "thread::sleep outside tests")
}

fn is_test_module(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn lines_with(file: &SourceFile, code: &str, is_hit: impl Fn(&str) -> bool, what: &str) -> Vec<String> {
    let hits = (1..).zip(code.lines()).filter(|(_, line)| is_hit(line));
    hits.map(|(number, _): (usize, _)| format!("{}:{number}: {what}", file.path)).collect()
}

/// What is committed works on every machine.
fn machine_paths(file: &SourceFile) -> Vec<String> {
    // Homes and mount points of somebody's machine. Paths that every Linux has (/proc, /sys, /dev, /tmp) are fine.
    let folders = ["/wo\u{72}k/", "/ro\u{6f}t/", "/ho\u{6d}e/", "/fa\u{72}m/", "/Use\u{72}s/"];
    let is_start = |line: &str, at: usize| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_ascii_alphanumeric() || "_./-}~".contains(before))
    };
    let mut found = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        let hit =
            folders.iter().find(|folder| line.match_indices(**folder).any(|(at, _)| is_start(line, at)));
        found.extend(hit.map(|folder| format!("{}:{number}: a path of a machine: {folder}", file.path)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::file;

    fn rust_file(path: &str, body: &str) -> Vec<String> {
        check(&[file(path, &format!("//! A file.\n{body}\n"))])
    }

    #[track_caller]
    fn is_found(found: &[String], what: &str) {
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }

    #[test]
    fn a_good_file_passes() {
        let body = "fn a() { b().unwrap_or(1); } // unsafe, .unwrap()\n#[cfg(test)]\nmod tests { fn c() { d().unwrap() } }";
        assert_eq!(rust_file("crates/x/src/a.rs", body), [""; 0]);
    }

    #[test]
    fn a_file_needs_a_header() {
        is_found(&check(&[file("crates/x/src/a.rs", "fn a() {}\n")]), "header");
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let lines = "// line\n".repeat(MAX_LINES);
        is_found(&check(&[file("a.rs", &format!("//! A file.\n{lines}"))]), "801 lines");
        let reason = "//! A file. Over 800\n//! lines because the tests need a model.\n";
        assert_eq!(check(&[file("a.rs", &format!("{reason}{lines}"))]), [""; 0]);
    }

    #[test]
    fn nothing_is_left_for_later() {
        is_found(&rust_file("a.rs", "fn a() { todo!() }"), "todo!");
        is_found(&rust_file("a.rs", "fn a() { unimplemented!() }"), "unimplemented!");
        is_found(&rust_file("a.rs", "#[ignore = \"slow\"]\nfn a() {}"), "#[ignore");
        is_found(&rust_file("a.rs", &["// FIX", "ME: later"].concat()), &["FIX", "ME"].concat());
        is_found(&rust_file("a.rs", &["// XX", "X later"].concat()), &["XX", "X"].concat());
    }

    #[test]
    fn libraries_do_not_unwrap() {
        is_found(&rust_file("crates/x/src/a.rs", "fn a() { b().unwrap(); }"), "a.rs:2: .unwrap()");
        assert_eq!(rust_file("crates/x/tests/a.rs", "fn a() { b().unwrap(); }"), [""; 0]);
    }

    #[test]
    fn unsafe_code_has_its_place() {
        let body = "fn a() { unsafe { b() } }";
        is_found(&rust_file("crates/mapwright/src/a.rs", body), "unsafe code");
        assert_eq!(rust_file("crates/mapwright-sys/src/a.rs", body), [""; 0]);
        assert_eq!(rust_file("crates/mapwright/src/a.rs", "#![forbid(unsafe_code)]"), [""; 0]);
    }

    #[test]
    fn exporting_to_c_has_its_place() {
        let export = "#[unsafe(no_mangle)]\npub extern \"C\" fn a() {}";
        assert_eq!(rust_file("crates/mapwright-c/src/map.rs", export), [""; 0]);
        is_found(&rust_file("crates/mapwright/src/map.rs", export), "unsafe code");
        for body in
            ["fn a() { unsafe { b() } }", "pub unsafe extern \"C\" fn a() {}", "unsafe impl Send for A {}"]
        {
            is_found(&rust_file("crates/mapwright-c/src/map.rs", body), "unsafe code");
            assert_eq!(rust_file("crates/mapwright-c/src/pointers.rs", body), [""; 0]);
        }
    }

    #[test]
    fn sleeping_is_for_tests() {
        let body = "fn a() { std::thread::sleep(b); }";
        is_found(&rust_file("crates/mapwright/src/a.rs", body), "thread::sleep");
        assert_eq!(rust_file("crates/mapwright/tests/a.rs", body), [""; 0]);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for folder in ["/ro\u{6f}t/x", "(/ho\u{6d}e/somebody/x)", "\"/wo\u{72}k/x\""] {
            is_found(&check(&[file("README.md", folder)]), "a path of a machine");
        }
        assert_eq!(check(&[file("README.md", "target/wo\u{72}k/x and /proc/self/fd")]), [""; 0]);
    }
}
