//! The program whose calls fail: it does its steps, tells the parent of each, and does as it was told where one fails.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mapwright::{Error, MapMut, Result, Snapshot};
use mapwright_sys::testing::Fork;

use crate::common::PAGE;
use crate::order::{BUDGET, Fault, Model, Order, Step, Then, written};
use crate::watcher::{Watcher, say};

/// Why a step was not done.
enum Missed {
    Undone,
    GaveUp,
}

/// The program, on its way.
pub struct Program {
    order: Order,
    path: PathBuf,
    pub watcher: Option<Arc<Mutex<Watcher>>>,
    pub map: Option<MapMut>,
    model: Model,
    view: Option<(Snapshot, Vec<u8>)>,
}

impl Program {
    pub fn new(order: Order, path: &Path) -> Self {
        let (path, model) = (path.to_owned(), Model::new(order.kind));
        Self { order, path, watcher: None, map: None, model, view: None }
    }

    pub fn run(&mut self) {
        // A broken disk is not waited for.
        let ms = if self.order.fault == Fault::ForGood { 200 } else { 30_000 };
        let opened = self.try_to("open", |program| {
            program.map = Some(program.order.kind.open(&program.path, BUDGET, Duration::from_millis(ms))?);
            Ok(())
        });
        if opened.is_err() {
            return self.give_up();
        }
        for (number, step) in self.order.kind.steps().into_iter().enumerate() {
            say(&format!("begin {number}"));
            match self.try_to(&format!("{step:?}"), |program| program.step(number, step)) {
                Ok(()) => {
                    self.model.apply(number, step);
                    say(&format!("done {number}"));
                    let flushes = matches!(step, Step::Flush | Step::Close) && !self.order.kind.is_atomic();
                    if let Some(watcher) = self.watcher.as_ref().filter(|_| flushes) {
                        watcher.lock().unwrap().is_nothing_lost("flushed");
                    }
                }
                Err(Missed::Undone) => {
                    self.model.now = self.model.durable.clone();
                    say(&format!("undone {number}"));
                }
                Err(Missed::GaveUp) => return self.give_up(),
            }
        }
        say("end");
    }

    /// Does something, perhaps again.
    fn try_to(
        &mut self,
        what: &str,
        mut work: impl FnMut(&mut Self) -> Result<()>,
    ) -> std::result::Result<(), Missed> {
        let attempts = if self.order.fault == Fault::ForGood { 1 } else { 3 };
        for _ in 0..attempts {
            let Err(error) = work(self) else { return Ok(()) };
            self.tell(what, &error);
            if self.order.then == Then::Dies {
                Fork::die();
            }
            let Some(map) = &mut self.map else {
                if what == "Close" {
                    break; // what was not flushed is gone with the map
                }
                continue;
            };
            let _ = map.acknowledge_error();
            if self.order.then == Then::RollsBack && what == "Flush" {
                return match map.rollback().or_else(|_| map.rollback()) {
                    Ok(()) => Err(Missed::Undone),
                    Err(error) => {
                        self.tell("Rollback", &error);
                        Err(Missed::GaveUp)
                    }
                };
            }
        }
        Err(Missed::GaveUp)
    }

    fn tell(&self, what: &str, error: &Error) {
        let shown = format!("{error:?}");
        let variant = shown.split([' ', '(']).next().unwrap_or_default();
        say(&format!("error {variant} {} {what}: {error}", error.errno().unwrap_or(0)));
    }

    pub fn step(&mut self, number: usize, step: Step) -> Result<()> {
        let map = self.map.as_mut().expect("a program ends with its map");
        match step {
            Step::Slices(at, len) => {
                let bytes = written(number, len);
                // In parts: each waits for room on its own where the disk is broken.
                for (nth, part) in bytes.chunks(2 * PAGE).enumerate() {
                    let at = at as usize + nth * 2 * PAGE;
                    map.checked_mut(|slice| slice[at..at + part.len()].copy_from_slice(part))?;
                }
                Ok(())
            }
            Step::Call(at, len) => map.write_at(at, &written(number, len)),
            Step::Overwrite(at, len) => map.overwrite(at, &written(number, len)),
            Step::Append(len) => map.append(&written(number, len)),
            Step::Resize(len) => map.resize(len),
            Step::Flush if self.order.kind.is_atomic() => map.commit(),
            Step::Flush => map.flush(),
            Step::Rollback => map.rollback(),
            Step::Snapshot => {
                self.view = Some((map.snapshot()?, self.model.durable.clone()));
                Ok(())
            }
            Step::LookBack => {
                let (view, durable) = self.view.as_ref().expect("it was made");
                let mut bytes = vec![0; durable.len()];
                view.read_at(0, &mut bytes)?;
                compare("the snapshot", &bytes, durable);
                self.view = None;
                Ok(())
            }
            Step::Look => self.look(),
            Step::Evict => map.evict(..).map(drop),
            Step::Close => self.map.take().expect("it was looked at just now").close(),
        }
    }

    fn look(&self) -> Result<()> {
        let map = self.map.as_ref().expect("a program ends with its map");
        assert_eq!(map.len(), self.model.now.len());
        let mut bytes = vec![0; map.len()];
        map.read_at(0, &mut bytes)?;
        compare("the map", &bytes, &self.model.now);
        Ok(())
    }

    /// On a disk that stays broken: what was not committed is dropped, and what was is read on.
    fn give_up(&mut self) {
        say("gave up");
        let Some(map) = self.map.as_mut().filter(|_| self.order.kind.is_atomic()) else { return };
        let _ = map.acknowledge_error();
        let rolled_back = map.rollback();
        if let Err(error) = &rolled_back {
            self.tell("the last rollback", error);
        }
        if matches!(rolled_back, Ok(()) | Err(Error::Io { .. })) {
            self.model.now = self.model.durable.clone();
            if rolled_back.is_ok() {
                say("undone all");
            }
            if let Err(error) = self.look() {
                self.tell("the last look", &error);
            }
        }
    }
}

fn compare(what: &str, is: &[u8], should: &[u8]) {
    if is != should {
        let at = is.iter().zip(should).position(|(is, should)| is != should);
        say(&format!("wrong: {what}, at {at:?}"));
    }
}
