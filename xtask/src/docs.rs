//! Names in the documents: what a walk calls by name must be in the source under that name.
//!
//! In the documents listed here every code span that looks like a Rust path (`module::name`, `Type::method`) must be
//! defined, and every one that looks like a source file must exist. A path is looked up by its last two parts: the last is
//! defined in a file or folder of the name of the one before it, or in a file that says something of a type of that name.

use crate::files::SourceFile;
use crate::source::{code_only, find_word};

/// Documents that promise to be true of the source.
fn is_promising(path: &str) -> bool {
    path.ends_with(".md")
        && (path == "ARCHITECTURE.md" || path == "CONTRIBUTING.md" || path.starts_with("docs/"))
}

/// Names that are in none of the source, as `path:line: what`.
pub fn check_names(files: &[SourceFile]) -> Vec<String> {
    if !files.iter().any(|file| is_promising(&file.path)) {
        return Vec::new();
    }
    let source: Vec<(&str, String)> = (files.iter().filter(|file| file.path.ends_with(".rs")))
        .map(|file| (file.path.as_str(), code_only(&file.text)))
        .collect();
    let mut found = Vec::new();
    for document in files.iter().filter(|file| is_promising(&file.path)) {
        for (number, line) in (1..).zip(document.text.lines()) {
            for span in line.split('`').skip(1).step_by(2) {
                if !is_known(span, &source) {
                    found.push(format!("{}:{number}: `{span}` is not in the source", document.path));
                }
            }
        }
    }
    found
}

/// Whether a code span is in the source, or none of our business.
fn is_known(span: &str, source: &[(&str, String)]) -> bool {
    if is_source_path(span) {
        return source.iter().any(|(path, _)| *path == span || path.ends_with(&format!("/{span}")));
    }
    let path = span.split(['(', '<']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split("::").collect();
    let is_path = parts.len() > 1 && parts.iter().all(|part| is_identifier(part));
    if !is_path || matches!(parts[0], "std" | "core" | "libc" | "rustix" | "memmap2") {
        return true;
    }
    let (scope, name) = (parts[parts.len() - 2], parts[parts.len() - 1]);
    source.iter().any(|(path, code)| {
        if scope.starts_with(|c: char| c.is_uppercase()) {
            speaks_of_type(code, scope) && (defines(code, name) || has_member(code, name))
        } else {
            is_module(path, scope) && defines(code, name)
        }
    })
}

fn is_source_path(span: &str) -> bool {
    span.ends_with(".rs") && span.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte))
}

fn is_identifier(part: &str) -> bool {
    let mut bytes = part.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a file is (part of) the module or crate `name`.
fn is_module(path: &str, name: &str) -> bool {
    let crate_name = name.replace('_', "-");
    path.strip_suffix(".rs")
        .is_some_and(|path| path.split('/').any(|part| part == name || part == crate_name))
}

fn speaks_of_type(code: &str, name: &str) -> bool {
    let says = |line: &str| {
        let is_item =
            ["impl", "struct", "enum", "trait", "union"].iter().any(|word| find_word(line, word).is_some());
        is_item && find_word(line, name).is_some()
    };
    code.lines().any(says)
}

/// Whether an item of that name is defined.
fn defines(code: &str, name: &str) -> bool {
    const ITEMS: [&str; 9] = ["fn", "struct", "enum", "trait", "const", "static", "type", "mod", "union"];
    code.lines().any(|line| {
        find_word(line, name).is_some_and(|at| {
            let before = line[..at].trim_end();
            ITEMS.iter().any(|item| before.ends_with(item) && find_word(before, item).is_some())
        })
    })
}

/// Whether a line begins with the name as a field or variant does.
fn has_member(code: &str, name: &str) -> bool {
    code.lines().any(|line| {
        let line = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        line.strip_prefix(name).is_some_and(|rest| {
            rest.trim_start().is_empty() || rest.trim_start().starts_with([',', '(', '{', ':', '='])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::file;

    fn check(document: &str) -> Vec<String> {
        let source = "//! Fills.\npub(crate) fn fill() {}\nimpl Word<'_> {\n    pub fn claim(self) {}\n}\nenum State {\n    Absent = 0,\n}\n// fn gone()\n";
        check_names(&[file("docs/a.md", document), file("crates/mapwright/src/engine/fill.rs", source)])
    }

    #[test]
    fn names_that_exist_pass() {
        let good = "`fill::fill`, `engine::fill::fill()`, `Word::claim`, `State::Absent`, `engine/fill.rs`, `std::fs::File`, `cargo test`";
        assert_eq!(check(good), [""; 0]);
    }

    #[test]
    fn names_that_do_not_exist_are_found() {
        for bad in ["`fill::gone`", "`other::fill`", "`Word::gone`", "`State::Gone`", "`engine/gone.rs`"] {
            let found = check(&format!("text\n{bad}"));
            assert!(found.len() == 1 && found[0].starts_with("docs/a.md:2: "), "{bad}: {found:?}");
        }
    }
}
