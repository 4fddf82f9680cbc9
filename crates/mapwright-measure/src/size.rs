//! Sizes as people write them: `64M`, `1GiB`, `4096`. Powers of 1024 throughout, with or without the `iB`.

/// Parses a size in bytes: a number, optionally a fraction, and optionally one of K, M, G, T, with `B` or `iB` after it.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("`{text}` is not a size; write it like 4096, 64M or 1GiB")),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1 << shift),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .map(|fraction| fraction * (1u64 << shift) as f64)
            .filter(|bytes| *bytes < u64::MAX as f64)
            .map(|bytes| bytes as u64),
    };
    match bytes {
        Some(0) => Err("a size of 0 is no size".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err(format!("`{text}` is not a size that fits; write it like 4096, 64M or 1GiB")),
    }
}

/// Bytes in the largest unit that leaves at least 1 before the point.
pub fn show(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            return if bytes.is_multiple_of(unit) {
                format!("{} {name}", bytes / unit)
            } else {
                format!("{:.1} {name}", bytes as f64 / unit as f64)
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1b", 1),
            ("64M", 64 << 20),
            ("64mb", 64 << 20),
            ("1GiB", 1 << 30),
            ("1 GiB", 1 << 30),
            ("1.5k", 1536),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in ["", "M", "-1", "0", "12x", "1..2", "99999999T", "0.0001", "1e3"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shows_sizes() {
        assert_eq!(show(1 << 30), "1 GiB");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(12), "12 B");
    }
}
