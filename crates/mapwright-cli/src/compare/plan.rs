//! How much a round does, and what is wrong with the outcome.

use mapwright_measure::pages::PAGE;
use mapwright_measure::size;

use super::worker::Measured;
use super::{Options, Pattern};
use crate::methods::Method;

/// Longest sequential scan unless more is asked for.
const SEQUENTIAL_BYTES: u64 = 4 << 30;

/// A round need not have more operations than this, unless that many do not fill the limit.
const ENOUGH_OPS: u64 = 20_000;

const FEWEST_OPS: u64 = 200;

/// How many times longer than a typical method the slowest one may take.
const PATIENCE: f64 = 10.0;

/// How much a round does.
pub struct Plan {
    /// Operations of a measured round.
    pub ops: u64,
    /// Operations of the warm-up, at most.
    pub warm_up_ops: u64,
    /// When the warm-up of a method stops early.
    pub warm_up_seconds: f64,
    /// Asked for by the user.
    fixed: bool,
    scan: bool,
    fewest: u64,
    most: u64,
    seconds: f64,
}

impl Plan {
    /// What is known before anything ran.
    pub fn new(options: &Options, pattern: Pattern, file_len: u64, limit: u64) -> Self {
        let (fewest, most, asked) = match pattern {
            Pattern::Sequential => {
                let most = file_len.min(SEQUENTIAL_BYTES).div_ceil(PAGE);
                let asked = options.sequential_bytes.map(|bytes| bytes.min(file_len).div_ceil(PAGE));
                (most.min((64 << 20) / PAGE), most, asked)
            }
            _ => (FEWEST_OPS, ENOUGH_OPS.max(limit / PAGE * 5 / 4), options.ops),
        };
        Self {
            ops: asked.unwrap_or(most),
            warm_up_ops: asked.unwrap_or(most),
            warm_up_seconds: options.seconds_per_round,
            fixed: asked.is_some(),
            scan: pattern == Pattern::Sequential,
            fewest,
            most,
            seconds: options.seconds_per_round,
        }
    }

    /// Sets the operations of a round from the speeds seen in the warm-up, in operations a second: a typical method takes
    /// about the time asked for, and the slowest not more than ten times as long. A scan is only shortened for the slowest.
    pub fn choose(&mut self, speeds: &[f64]) {
        if self.fixed || speeds.is_empty() {
            return;
        }
        let typical = super::rows::median(speeds.to_vec()) * self.seconds;
        let slowest = speeds.iter().copied().fold(f64::INFINITY, f64::min) * self.seconds * PATIENCE;
        let ops = if self.scan { slowest } else { typical.min(slowest) } as u64;
        // Whole MiB, or two significant digits: the number appears in tables.
        let unit = if self.scan { 256 } else { 10u64.pow(ops.max(1).ilog10().saturating_sub(1)) };
        self.ops = (ops / unit * unit).clamp(self.fewest, self.most);
    }
}

/// A message that names the methods whose checksum differs from that of most rounds.
pub fn checksum_problem(
    pattern: Pattern,
    threads: usize,
    measured: &[(Method, Vec<Measured>)],
) -> Option<String> {
    let all: Vec<u64> =
        measured.iter().flat_map(|(_, rounds)| rounds.iter().map(|round| round.checksum)).collect();
    let votes = |checksum: &u64| all.iter().filter(|other| *other == checksum).count();
    let usual = *all.iter().max_by_key(|checksum| votes(checksum))?;
    let wrong: Vec<String> = measured
        .iter()
        .filter_map(|(method, rounds)| {
            let differing = rounds.iter().find(|round| round.checksum != usual)?;
            Some(format!("{} ({:016x})", method.name(), differing.checksum))
        })
        .collect();
    (!wrong.is_empty()).then(|| {
        format!(
            "{} with {threads} thread(s): checksums differ: {} instead of {usual:016x}",
            pattern.name(),
            wrong.join(", ")
        )
    })
}

/// A message when a pager's process had more resident memory than its budget allows: 2 % and 8 MiB above the limit.
pub fn budget_problem(pattern: Pattern, method: Method, limit: u64, rounds: &[Measured]) -> Option<String> {
    let allowed = limit + limit / 50 + (8 << 20);
    let most =
        rounds.iter().map(|round| round.peak_rss_bytes.saturating_sub(round.baseline_rss_bytes)).max()?;
    (most > allowed).then(|| {
        format!(
            "{} through {}: {} of resident memory, where the limit of {} allows {} (2 % and 8 MiB more)",
            pattern.name(),
            method.name(),
            size::show(most),
            size::show(limit),
            size::show(allowed)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            ops: 9,
            warm_up_ops: 9,
            warm_up_seconds: 1.0,
            fixed: false,
            scan: false,
            fewest: 200,
            most: 20_000,
            seconds: 1.5,
        }
    }

    #[test]
    fn a_typical_method_takes_the_time_asked_for() {
        let mut plan = plan();
        plan.choose(&[10_000.0, 9_000.0, 8_400.0]);
        assert_eq!(plan.ops, 13_000);
    }

    #[test]
    fn one_very_slow_method_shortens_the_round() {
        let mut plan = plan();
        plan.choose(&[176.0, 18_000.0, 18_700.0, 20_000.0]);
        assert_eq!(plan.ops, 2600);
        plan.choose(&[1.0, 18_000.0, 20_000.0]);
        assert_eq!(plan.ops, 200);
    }

    #[test]
    fn a_scan_reads_all_of_the_file_unless_that_takes_too_long() {
        let mut plan = Plan { scan: true, ..plan() };
        plan.choose(&[100_000.0, 5_000.0]);
        assert_eq!(plan.ops, 20_000);
        plan.choose(&[100_000.0, 100.0]);
        assert_eq!(plan.ops, 1280);
    }

    #[test]
    fn what_was_asked_for_stays() {
        let mut plan = Plan { fixed: true, ..plan() };
        plan.choose(&[1e6]);
        assert_eq!(plan.ops, 9);
    }

    fn measured(checksum: u64, peak: u64) -> Measured {
        Measured { checksum, peak_rss_bytes: peak, baseline_rss_bytes: 5 << 20, ..Measured::default() }
    }

    #[test]
    fn the_odd_one_out_is_named() {
        let rounds = [
            (Method::Read, vec![measured(1, 0), measured(1, 0)]),
            (Method::Mmap, vec![measured(1, 0), measured(2, 0)]),
        ];
        let problem = checksum_problem(Pattern::Random, 1, &rounds).unwrap();
        assert!(problem.contains("mmap (0000000000000002)") && !problem.contains("read ("), "{problem}");
        assert!(checksum_problem(Pattern::Random, 1, &rounds[..1]).is_none());
        assert!(checksum_problem(Pattern::Random, 1, &[]).is_none());
    }

    #[test]
    fn a_budget_that_is_not_kept_is_a_problem() {
        let limit = 100 << 20;
        let within = [measured(0, limit + (2 << 20) + (8 << 20) + (5 << 20))];
        assert!(budget_problem(Pattern::Zipf, Method::Mapwright, limit, &within).is_none());
        let beyond = [measured(0, limit + (2 << 20) + (8 << 20) + (5 << 20) + 4096)];
        assert!(budget_problem(Pattern::Zipf, Method::Mapwright, limit, &beyond).unwrap().contains("zipf"));
    }
}
