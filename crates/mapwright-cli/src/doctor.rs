//! `mapwright doctor`: what this machine allows, which strategy follows from it, and a remedy for each thing missing.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use mapwright_measure::failure::{Failure, Result};
use serde::Serialize;

use crate::probe::{self, Finding, Probed, State};

const EXAMPLES: &str = "\
Examples:
  mapwright doctor                 what this machine allows, and remedies
  mapwright doctor --json          the same for a program

Exit codes: 0 done, also where much is missing; 1 it could not be printed; 2 bad usage.";

/// Say what this machine allows, and what to do about what it does not
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// What follows from the findings.
#[derive(Debug, Serialize)]
struct Verdict {
    /// What `Strategy::Auto` follows for a large local file.
    auto: &'static str,
    /// Why.
    why: String,
    /// The ways to serve a fault.
    fault_modes: Vec<FaultMode>,
}

#[derive(Debug, Serialize)]
struct FaultMode {
    name: &'static str,
    works: bool,
    caveat: &'static str,
}

#[derive(Serialize)]
struct Output<'a> {
    strategy: &'a Verdict,
    findings: &'a [Finding],
}

/// Looks, judges and prints.
pub fn doctor(options: &Options) -> Result<()> {
    let probed = probe::uffd_probe();
    let findings = probe::findings(probed.as_ref());
    let verdict = judge(probed.as_ref());
    let text = if options.json {
        let output = Output { strategy: &verdict, findings: &findings };
        let json = serde_json::to_string_pretty(&output)
            .map_err(|error| Failure::Message(format!("cannot write the findings as JSON: {error}")))?;
        json + "\n"
    } else {
        present(&verdict, &findings)
    };
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::Message(format!("cannot print: {error}")))
}

fn judge(probed: Option<&Probed>) -> Verdict {
    let kernel = |why: String| Verdict { auto: "kernel", why, fault_modes: Vec::new() };
    let facts = match probed.map(|probed| &probed.userfaultfd) {
        None => return kernel("this build was made without the pager (feature `lib`)".to_owned()),
        Some(Err(why)) => return kernel(format!("there is no userfaultfd here: {why}")),
        Some(Ok(facts)) => facts,
    };
    let has = |name: &str| {
        probe::FEATURES
            .iter()
            .position(|(known, _)| *known == name)
            .is_some_and(|bit| facts.features >> bit & 1 == 1)
    };
    let missing: Vec<&str> =
        ["MISSING_SHMEM", "MINOR_SHMEM"].into_iter().filter(|feature| !has(feature)).collect();
    if !missing.is_empty() {
        return kernel(format!("userfaultfd lacks {}", missing.join(" and ")));
    }
    let in_thread = FaultMode {
        name: "in-thread",
        works: has("SIGBUS"),
        caveat: "a system call that is handed an absent page gets EFAULT; get() and read_at() do not",
    };
    let thread = FaultMode {
        name: "thread",
        works: true,
        caveat: if facts.user_mode_only {
            "user mode only: a system call that is handed an absent page gets EFAULT; get() and read_at() do not"
        } else {
            "none: faults from inside system calls are served too; each fault costs two thread switches"
        },
    };
    let served = if facts.user_mode_only { "in user mode" } else { "also inside system calls" };
    Verdict {
        auto: "pager",
        why: format!("userfaultfd works through {}, faults are served {served}", facts.source),
        fault_modes: vec![thread, in_thread],
    }
}

fn present(verdict: &Verdict, findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    for section in findings.chunk_by(|a, b| a.section == b.section) {
        let _ = writeln!(text, "{}", section[0].section);
        for finding in section {
            let mark = match finding.state {
                State::Good => "ok  ",
                State::Limited => "less",
                State::Missing => "MISS",
                State::Fact => "    ",
            };
            let _ = writeln!(text, "  {mark}  {:<width$}  {}", finding.name, finding.value);
        }
    }
    let _ = writeln!(text, "\nstrategy Auto for a large file: {} ({})", verdict.auto, verdict.why);
    for mode in &verdict.fault_modes {
        let works = if mode.works { "works" } else { "does not work here" };
        let _ = writeln!(text, "  fault mode {:<10} {works}; caveat: {}", mode.name, mode.caveat);
    }
    let remedies: Vec<_> =
        findings.iter().filter_map(|finding| Some((&finding.name, finding.remedy.as_ref()?))).collect();
    if !remedies.is_empty() {
        text.push_str("\nwhat to do\n");
        for (name, remedy) in remedies {
            let _ = writeln!(text, "  {name}: {remedy}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::UserfaultFacts;

    fn probed(features: u64, user_mode_only: bool) -> Probed {
        Probed {
            userfaultfd: Ok(UserfaultFacts { features, user_mode_only, source: "userfaultfd(2)".to_owned() }),
            pagemap_scan: Ok(()),
            io_uring: Ok(()),
        }
    }

    #[test]
    fn all_features_lead_to_the_pager() {
        let verdict = judge(Some(&probed(0x1ffff, false)));
        assert_eq!(verdict.auto, "pager");
        assert!(verdict.fault_modes.iter().all(|mode| mode.works));
        assert!(judge(Some(&probed(0x1ffff, true))).fault_modes[0].caveat.contains("EFAULT"));
    }

    #[test]
    fn what_is_missing_leads_to_the_kernel_and_is_named() {
        let verdict = judge(Some(&probed(0x1ffff & !(1 << 10), false)));
        assert_eq!(verdict.auto, "kernel");
        assert!(
            verdict.why.contains("MINOR_SHMEM") && !verdict.why.contains("MISSING_SHMEM"),
            "{}",
            verdict.why
        );
        assert_eq!(judge(None).auto, "kernel");
    }
}
