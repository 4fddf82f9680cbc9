//! Links between the documents: files and headings they point to exist.
//!
//! Looks at inline links and reference definitions of every `.md` file, and at mentions of `docs/….md` in the source.
//! Addresses on the web are left alone: a check that needs the network fails for reasons that are nobody's fault.

use std::collections::HashMap;

use crate::files::SourceFile;

/// Every link that leads nowhere, as `path:line: what`.
pub fn check(files: &[SourceFile]) -> Vec<String> {
    let headings: HashMap<&str, Vec<String>> = (files.iter().filter(|file| file.path.ends_with(".md")))
        .map(|file| (file.path.as_str(), anchors(&file.text)))
        .collect();
    let exists = |path: &str| {
        files.iter().any(|file| {
            file.path == path || file.path.starts_with(&format!("{}/", path.trim_end_matches('/')))
        })
    };
    let mut found = Vec::new();
    for file in files {
        if file.path.ends_with(".md") {
            for (number, target) in links(&file.text) {
                let (path, anchor) =
                    target.split_once('#').map_or((target.as_str(), None), |(p, a)| (p, Some(a)));
                let path = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
                if !exists(&path) {
                    found.push(format!("{}:{number}: {target}: there is no file {path}", file.path));
                } else if let (Some(anchor), Some(headings)) = (anchor, headings.get(path.as_str()))
                    && !headings.iter().any(|heading| heading == anchor)
                {
                    found.push(format!("{}:{number}: {target}: {path} has no heading #{anchor}", file.path));
                }
            }
        } else if file.path.ends_with(".rs") && !file.path.starts_with("xtask/") {
            for (number, path) in mentions(&file.text) {
                if !exists(&path) {
                    found.push(format!("{}:{number}: there is no {path}", file.path));
                }
            }
        }
    }
    found
}

/// Targets of the links that stay in the workspace, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
        if let Some((name, target)) = line.split_once("]: ")
            && name.starts_with('[')
        {
            found.push((number, target.trim().to_owned()));
        }
    }
    found.retain(|(_, target)| {
        !target.contains("://") && !target.starts_with("mailto:") && !target.is_empty()
    });
    found
}

/// Lines outside fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// A line with its code spans blanked.
fn without_code(line: &str) -> String {
    line.split('`').enumerate().map(|(part, text)| if part % 2 == 0 { text } else { "code" }).collect()
}

/// The anchors of a document's headings, by GitHub's rule: lower case, letters, digits, `-` and `_` stay, spaces become
/// `-`, and a heading that comes again gets a number.
fn anchors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = (title.trim().to_lowercase().chars())
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let times = seen.entry(anchor.clone()).or_default();
        found.push(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
        *times += 1;
    }
    found
}

/// A target relative to the document that names it, as a path from the root.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Documents that source names: words that begin with `docs/` and end with `.md`.
fn mentions(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (at, _) in line.match_indices("docs/") {
            let word = line[at..]
                .split(|c: char| !c.is_alphanumeric() && !"/-_.".contains(c))
                .next()
                .unwrap_or_default();
            let is_start = !line[..at].ends_with(|c: char| c.is_alphanumeric() || "/-_.".contains(c));
            if is_start && let Some(end) = word.find(".md") {
                found.push((number, word[..end + 3].to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::file;

    #[test]
    fn good_links_pass() {
        let files = [
            file(
                "README.md",
                "# One\n[a](docs/a.md) [b](docs/a.md#two-words-1) [c](#one) [d](https://x.example/y) `[e](f)`",
            ),
            file(
                "docs/a.md",
                "## Two words\n## Two `words`\n[up](../README.md)\n```\n[no](where)\n# no\n```\n[x]: ../README.md",
            ),
            file("crates/x/src/a.rs", "//! See docs/a.md."),
        ];
        assert_eq!(check(&files), [""; 0]);
    }

    #[test]
    fn a_missing_file_is_found() {
        let found = check(&[file("docs/a.md", "text\n[a](b.md)")]);
        assert_eq!(found, ["docs/a.md:2: b.md: there is no file docs/b.md"]);
    }

    #[test]
    fn a_missing_heading_is_found() {
        let found = check(&[file("a.md", "# One\n[a](#two)"), file("b.md", "[a](a.md#two)\n[a](a.md#one)")]);
        assert!(found.len() == 2 && found.iter().all(|line| line.contains("no heading #two")), "{found:?}");
    }

    #[test]
    fn a_missing_reference_definition_is_found() {
        assert_eq!(check(&[file("a.md", "[x]: b.md")]).len(), 1);
    }

    #[test]
    fn a_document_that_source_names_must_exist() {
        let found = check(&[file("crates/x/src/a.rs", "//! See docs/gone.md for it.")]);
        assert_eq!(found, ["crates/x/src/a.rs:1: there is no docs/gone.md"]);
    }
}
