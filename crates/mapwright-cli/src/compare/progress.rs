//! Progress of a comparison, on stderr: a bar on a terminal, elsewhere a plain line now and then.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Least time between two lines of one table.
const BETWEEN: Duration = Duration::from_secs(10);

/// How far a comparison is.
pub struct Progress {
    bar: ProgressBar,
    /// Where there is no terminal: when the last line was printed, if any was for this table.
    lines: Option<Cell<Option<Instant>>>,
}

impl Progress {
    /// Of `steps` rounds; shows nothing if `quiet`.
    pub fn new(quiet: bool, steps: u64) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let target =
            if quiet || !on_terminal { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = "{bar:30} {pos}/{len} rounds, {eta} left: {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, lines: (!quiet && !on_terminal).then(Cell::default) }
    }

    /// A table begins: what comes next is worth a line.
    pub fn begin(&self) {
        self.lines.iter().for_each(|last| last.set(None));
    }

    /// What is being done now.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        let Some(last) = &self.lines else { return };
        if last.get().is_none_or(|last| last.elapsed() >= BETWEEN) {
            last.set(Some(Instant::now()));
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            // Who has closed the other end does not want to know.
            let _ = writeln!(std::io::stderr(), "mapwright compare: {done} of {all} rounds done; {what}");
        }
    }

    /// Rounds that ended or will not be run.
    pub fn did(&self, rounds: u64) {
        self.bar.inc(rounds);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
