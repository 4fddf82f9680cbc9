//! Parity with the kernel: one table of cases, each run through raw system calls and through `mapwright::mmap`, each citing the
//! sentence that says what is to be seen. Contents, errors by number and visibility must be what the sentence says on both sides;
//! where mapwright differs, the table says how and why.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod advice;
mod changes;
mod making;
mod ours;
mod raw;
mod shared;
mod side;

use side::Side;

/// One case. What is seen is a line of text, or the error that ended it.
pub struct Case {
    /// The page that says so.
    page: &'static str,
    /// Its sentence.
    says: &'static str,
    /// What is seen.
    seen: &'static str,
    /// What mapwright does instead, and why.
    ours: Option<(&'static str, &'static str)>,
    run: fn(&mut dyn Side) -> Result<String, String>,
}

impl Case {
    const fn new(
        page: &'static str,
        says: &'static str,
        seen: &'static str,
        run: fn(&mut dyn Side) -> Result<String, String>,
    ) -> Self {
        Self { page, says, seen, ours: None, run }
    }

    const fn but_ours(mut self, seen: &'static str, why: &'static str) -> Self {
        self.ours = Some((seen, why));
        self
    }
}

#[test]
fn every_case_is_seen_alike_through_system_calls_and_through_mapwright() {
    let tables = [making::CASES, changes::CASES, advice::CASES, shared::CASES];
    let cases: Vec<&Case> = tables.into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for case in &cases {
        let run = |side: &mut dyn Side| match (case.run)(side) {
            Ok(seen) | Err(seen) => seen,
        };
        let (seen_raw, seen_ours) = (run(&mut raw::Raw::new()), run(&mut ours::Ours::new()));
        let expected = case.ours.map_or(case.seen, |(seen, _)| seen);
        if seen_raw != case.seen || seen_ours != expected {
            wrong.push(format!(
                "{}: {:?}\n  expected {:?}\n  system calls {seen_raw:?}\n  mapwright {seen_ours:?}, expected {expected:?}",
                case.page, case.says, case.seen
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let differ = cases.iter().filter(|case| case.ours.is_some()).count();
    println!("{} cases, of which {differ} differ on purpose", cases.len());
    assert!(cases.len() >= 150, "{} cases", cases.len());
    for case in &cases {
        let is_page = case.page.starts_with("POSIX") || case.page.ends_with(')');
        assert!(
            is_page && case.says.len() > 15 && case.says.ends_with(['.', ':']),
            "{}: {}",
            case.page,
            case.says
        );
        assert!(case.ours.is_none_or(|(seen, why)| seen != case.seen && !why.is_empty()), "{}", case.says);
    }
}
