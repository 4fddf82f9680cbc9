//! Runs a program, and judges what it has told and what it leaves.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use crate::common::{child, contents, require_userfaultfd, scratch};
use crate::order::{Fault, Kind, LEN, Model, Order, Step, Then};

/// What was found.
type Verdict = std::result::Result<(), String>;

/// What a run has told.
pub struct Told {
    pub lines: Vec<String>,
}

impl Told {
    pub fn all<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| line.strip_prefix(what)).map(str::trim)
    }

    pub fn has(&self, what: &str) -> bool {
        self.all(what).next().is_some()
    }

    /// The class of the call that failed, and its file.
    pub fn hit(&self) -> Option<&str> {
        self.all("hit ").next()
    }
}

/// Runs the program, and looks what it leaves.
pub fn run(order: Order) -> Told {
    let dir = scratch();
    let path = dir.path().join("data");
    fs::write(&path, contents(LEN)).unwrap();
    let role = format!("{} {}", order.text(), path.display());
    let output = child("a_program_whose_calls_fail", &role).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| Some(line[line.find('@')? + 1..].to_owned())).collect();
    let told = Told { lines };
    let verdict = judge_program(order, &told, output.status)
        .and_then(|()| if told.has("unwatched ") { Ok(()) } else { judge_file(order, &told, &path) });
    if let Err(why) = verdict {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("MAPWRIGHT_FAULT='{}': {why}\n{text}\n{errors}", order.text());
    }
    told
}

/// Whether it ended as it should, and met nothing but what it should.
fn judge_program(order: Order, told: &Told, status: ExitStatus) -> Verdict {
    let has_died = order.then == Then::Dies && told.has("error ");
    let as_it_should = if has_died { status.signal() == Some(libc::SIGKILL) } else { status.success() };
    if !as_it_should {
        return Err(format!("it ended by {status}"));
    }
    if let Some(what) = told.all("wrong:").chain(told.all("lie:")).next() {
        return Err(what.to_owned());
    }
    for error in told.all("error ") {
        let mut words = error.split(' ');
        let (variant, errno) = (words.next().unwrap(), words.next().unwrap());
        let injected = [order.errno, libc::EIO].iter().any(|number| number.to_string() == errno);
        let typed = injected && ["Io", "Latched"].contains(&variant) && told.hit().is_some();
        // Patience is short there: on a busy machine it ends before anything fails, too.
        let waited = order.fault == Fault::ForGood && ["BudgetExhausted", "TimedOut"].contains(&variant);
        if !typed && !waited {
            return Err(format!("not the error of the call that failed: {error}"));
        }
    }
    // A map that could not be closed is closed; everything else can be tried again.
    let closes = format!("begin {}", order.kind.steps().len() - 1);
    if order.fault != Fault::ForGood && told.has("gave up") && !told.has(&closes) {
        return Err("it is over, and yet it fails".to_owned());
    }
    Ok(())
}

/// Whether the file is what was acknowledged, or what was on its way.
fn judge_file(order: Order, told: &Told, path: &Path) -> Verdict {
    let steps = order.kind.steps();
    let mut model = Model::new(order.kind);
    // A commit that was begun and not acknowledged; and all that the file was since the last flush.
    let mut in_doubt = None;
    let mut versions = vec![model.now.clone()];
    for line in &told.lines {
        let Some((what, number)) = line.split_once(' ') else { continue };
        let number: usize = if number == "all" { 0 } else { number.parse().unwrap_or(0) };
        match what {
            "begin" => {
                let mut next = model.clone();
                next.apply(number, steps[number]);
                if matches!(steps[number], Step::Flush | Step::Close) {
                    in_doubt = Some(next.durable);
                }
                versions.push(next.now);
            }
            "done" => {
                model.apply(number, steps[number]);
                if matches!(steps[number], Step::Flush | Step::Close) {
                    (in_doubt, versions) = (None, Vec::new());
                }
                versions.push(model.now.clone());
            }
            "undone" => {
                model.now = model.durable.clone();
                in_doubt = None;
            }
            _ => {}
        }
    }
    match order.kind {
        Kind::Atomic | Kind::Recovery => {
            let map = order.kind.open(path, 1 << 20, Duration::from_secs(30));
            let map = map.map_err(|error| format!("it does not open again: {error}"))?;
            let is = |bytes: &[u8]| map[..] == *bytes;
            if !is(&model.durable) && !in_doubt.as_deref().is_some_and(is) {
                return Err("the file is not what a commit left".to_owned());
            }
            let bytes = map[..].to_vec();
            map.close().map_err(|error| format!("it does not close: {error}"))?;
            let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
            let is_plain = fs::read(path).unwrap() == bytes && names == 1;
            if is_plain { Ok(()) } else { Err("closed, it is not what was read".to_owned()) }
        }
        Kind::Scratch => Ok(()),
        _ => is_mixture(&fs::read(path).unwrap(), &versions),
    }
}

/// Whether each byte is as in one of these versions, and the length too. (Not each page: one may be written back while it is
/// written to.)
fn is_mixture(bytes: &[u8], versions: &[Vec<u8>]) -> Verdict {
    if !versions.iter().any(|version| version.len() == bytes.len()) {
        return Err(format!("{} bytes long", bytes.len()));
    }
    let stranger = bytes
        .iter()
        .enumerate()
        .find(|(at, byte)| !versions.iter().any(|version| version.get(*at).copied().unwrap_or(0) == **byte));
    match stranger {
        Some((at, _)) => Err(format!("the byte at {at} is of no time since the last flush")),
        None => Ok(()),
    }
}

#[test]
fn what_is_lost_is_found() {
    if !require_userfaultfd() {
        return;
    }
    for kind in [Kind::Atomic, Kind::Flush] {
        let order = Order::new(kind, 0, libc::EIO, Fault::Once, Then::GoesOn);
        let dir = scratch();
        let path = dir.path().join("data");
        fs::write(&path, contents(LEN)).unwrap();
        let mut lines = Vec::new();
        let mut acknowledge = |number: usize| {
            lines.push(format!("begin {number}"));
            assert_eq!(judge_file(order, &Told { lines: lines.clone() }, &path), Ok(()), "on its way");
            lines.push(format!("done {number}"));
            judge_file(order, &Told { lines: lines.clone() }, &path)
        };
        let flush = kind.steps().iter().position(|step| *step == Step::Flush).unwrap();
        (0..flush).for_each(|number| assert_eq!(acknowledge(number), Ok(())));
        assert!(acknowledge(flush).is_err(), "the file has nothing of it");
    }
    assert!(is_mixture(&[4, 2, 0], &[vec![1, 5, 9], vec![3, 2]]).is_err(), "a byte of neither");
    assert_eq!(is_mixture(&[3, 5, 0], &[vec![1, 5, 9], vec![3, 2], vec![0; 3]]), Ok(()));
}
