//! Rust source without what the rules don't apply to: comments, literals, and test modules.
//!
//! A scanner of a page, not a parser: it knows comments, strings (raw ones too), character literals and braces. That is
//! enough for source that the compiler has accepted.

/// The source with comments and the insides of literals replaced by blanks; line numbers stay.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n").unwrap_or(bytes.len()),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !is_word_before(bytes, at) || bytes[at - 1] == b'b' => match raw_string_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            b'\'' => match char_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1; // a lifetime
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        let is_literal = bytes[at] != b'/';
        for (index, byte) in out[at..end].iter_mut().enumerate() {
            let is_quote = is_literal && (index == 0 || index == end - at - 1);
            if *byte != b'\n' && !is_quote {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `code_only` with the bodies of `#[cfg(test)]` items blanked too.
pub fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = item_end(code.as_bytes(), start);
        for byte in &mut out[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        from = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One past the end of the item that follows: its closing brace, or a semicolon before any brace.
fn item_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b';' if depth == 0 => return at + 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

/// Whether `word` stands in `text` by itself, and where first.
pub fn find_word(text: &str, word: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let end = at + word.len();
        !is_word_before(bytes, at) && !bytes.get(end).copied().is_some_and(is_word)
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
}

fn comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(start + 1 + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    Some(find(bytes, start + 2 + hashes, &close).map_or(bytes.len(), |at| at + close.len()))
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        return find(bytes, start + 3, b"'").map(|at| at + 1);
    }
    let text = std::str::from_utf8(bytes.get(start + 1..)?).ok()?;
    let len = text.chars().next()?.len_utf8();
    (bytes.get(start + 1 + len) == Some(&b'\'')).then_some(start + len + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_stay() {
        let text = "let a = \"x.unwrap()\"; // .unwrap()\n/* .unwrap()\n/* nested */ */ b.unwrap(); r#\"c\".unwrap()\"#;\nlet d = '\"'; e.unwrap();\nfn f<'a>() {}";
        let code = code_only(text);
        assert_eq!(code.matches(".unwrap()").count(), 2, "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(code.contains("fn f<'a>()"));
    }

    #[test]
    fn test_modules_are_blanked() {
        let code = code_only(
            "fn a() { b.unwrap(); }\n#[cfg(test)]\nmod tests { fn c() { d.unwrap(); } }\nfn e() {}",
        );
        let code = without_tests(&code);
        assert_eq!(code.matches(".unwrap()").count(), 1);
        assert!(code.contains("fn e()") && !code.contains("fn c()"));
        assert!(without_tests("#[cfg(test)]\nmod tests;\nfn e() {}").contains("fn e()"));
    }

    #[test]
    fn words_stand_by_themselves() {
        assert_eq!(find_word("unsafe_code unsafe {", "unsafe"), Some(12));
        assert_eq!(find_word("unsafe_code", "unsafe"), None);
    }
}
