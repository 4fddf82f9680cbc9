//! Conditions on columns: `rss>1M`, `perm~*x*`, `kind=heap`.

use glob::Pattern;
use mapwright_measure::size;

use super::columns::{Column, Line, Value};
use crate::process::smaps::Smaps;

/// A condition, its column not looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    column: String,
    relation: Relation,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Like,
}

/// The longer ones first.
const RELATIONS: [(&str, Relation); 7] = [
    ("!=", Relation::Unequal),
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("=", Relation::Equal),
    ("<", Relation::Less),
    (">", Relation::Greater),
    ("~", Relation::Like),
];

impl std::str::FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a condition; write it like rss>1M, perm~*x*, kind=heap or swap!=0");
        let at = text.find(['=', '!', '<', '>', '~']).ok_or_else(wrong)?;
        let (sign, relation) =
            RELATIONS.iter().find(|(sign, _)| text[at..].starts_with(sign)).ok_or_else(wrong)?;
        let (column, value) = (text[..at].trim().to_owned(), text[at + sign.len()..].trim().to_owned());
        if column.is_empty() { Err(wrong()) } else { Ok(Self { column, relation: *relation, value }) }
    }
}

/// A condition on a column that there is.
pub struct Filter {
    column: Column,
    relation: Relation,
    wanted: Wanted,
}

enum Wanted {
    Number(u64),
    Text(String),
    Pattern(Pattern),
}

impl Filter {
    /// Looks the column up.
    pub fn new(condition: &Condition, smaps: &Smaps) -> Result<Self, String> {
        let Condition { column, relation, value } = condition;
        let column = Column::find(column, smaps)?;
        let wanted = match relation {
            Relation::Like => {
                Wanted::Pattern(Pattern::new(value).map_err(|error| format!("`{value}`: {error}"))?)
            }
            _ if column.is_number() => Wanted::Number(number(value)?),
            Relation::Equal | Relation::Unequal => Wanted::Text(value.clone()),
            _ => return Err(format!("`{}` is text: compare it with =, != or ~", condition.column)),
        };
        Ok(Self { column, relation: *relation, wanted })
    }

    /// Whether a line meets it.
    pub fn admits(&self, line: &Line, smaps: &Smaps) -> bool {
        let value = self.column.value(line, smaps);
        match (&self.wanted, &value) {
            (Wanted::Number(wanted), Value::Size(number) | Value::Number(number)) => match self.relation {
                Relation::Equal => number == wanted,
                Relation::Unequal => number != wanted,
                Relation::Less => number < wanted,
                Relation::LessOrEqual => number <= wanted,
                Relation::Greater => number > wanted,
                Relation::GreaterOrEqual => number >= wanted,
                Relation::Like => false,
            },
            (Wanted::Text(wanted), Value::Text(text)) => {
                (text == wanted) == (self.relation == Relation::Equal)
            }
            (Wanted::Pattern(pattern), value) => {
                pattern.matches(&value.show(&self.column, super::columns::Unit::Bytes))
            }
            _ => false,
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size::parse(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::smaps;

    #[test]
    fn conditions_hold_or_do_not() {
        let text = "1000-3000 r-xp 00001000 fe:00 7 /lib/a.so\nSize: 8 kB\nRss: 4 kB\n";
        let smaps = smaps::parse(text.as_bytes()).unwrap();
        let line = Line { area: smaps.areas[0].clone(), count: 1, note: String::new() };
        let holds = |text: &str| Filter::new(&text.parse().unwrap(), &smaps).unwrap().admits(&line, &smaps);
        for yes in [
            "rss=4096",
            "rss<=4K",
            "RSS > 4095",
            "size!=0",
            "perm~r?x*",
            "mapping~*.so",
            "kind=private-file",
            "perm!=rw-p",
            "inode=7",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in ["rss>4K", "rss<4K", "perm=rwxp", "mapping~*.db", "size=0"] {
            assert!(!holds(no), "{no}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let smaps = Smaps::default();
        for bad in ["rss", "=4", "!x", ""] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
        for bad in ["nothing=1", "inode=x", "perm<r", "mapping~["] {
            assert!(Filter::new(&bad.parse().unwrap(), &smaps).is_err(), "{bad}");
        }
    }
}
