//! Decides which system call of the program fails, and follows what is durable of the file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mapwright_sys::testing::watched::{Answer, Call};

use crate::order::{Fault, Kind, Order, P};

/// To the parent, a line.
pub fn say(line: &str) {
    println!("@{line}");
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Read,
    Write,
    Sync,
    Length,
    Open,
    Create,
    Name,
}

impl Class {
    /// And the file; `None` if it is none of the program's.
    fn of(call: &Call, folder: &Path) -> Option<(Self, PathBuf)> {
        let (class, path) = match call.number() {
            libc::SYS_pread64 | libc::SYS_preadv | libc::SYS_preadv2 => (Self::Read, call.file(0)),
            libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => (Self::Write, call.file(0)),
            libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => (Self::Sync, call.file(0)),
            libc::SYS_msync => (Self::Sync, Some(folder.join("mapped"))),
            libc::SYS_ftruncate | libc::SYS_fallocate => (Self::Length, call.file(0)),
            libc::SYS_openat if call.argument(2) & libc::O_CREAT as u64 != 0 => (Self::Create, call.path(1)),
            libc::SYS_openat => (Self::Open, call.path(1)),
            _ => (Self::Name, call.path(1)),
        };
        path.filter(|path| path.starts_with(folder)).map(|path| (class, path))
    }

    fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Open)
    }
}

/// Decides what fails.
pub struct Watcher {
    pub order: Order,
    pub folder: PathBuf,
    pub seen: u64,
    /// What was the class of the call that failed first.
    pub first: Option<Class>,
    /// Pages of the file that were written since the last sync, and those that a sync has failed to make durable: the kernel may call
    /// them clean, so that a later sync says nothing of them, unless they are written again.
    pub unsynced: BTreeSet<u64>,
    pub lost: BTreeSet<u64>,
}

impl Watcher {
    pub fn answer(&mut self, call: &Call) -> Answer {
        let Some((class, path)) = Class::of(call, &self.folder) else { return Answer::GoesOn };
        let number = self.seen;
        self.seen += 1;
        let is_hit = match self.first {
            None => number >= self.order.at,
            Some(first) if self.order.fault == Fault::ForGood => {
                if first.changes() {
                    class.changes()
                } else {
                    first == class
                }
            }
            Some(_) => false,
        };
        let answer = match self.order.fault {
            _ if !is_hit => Answer::GoesOn,
            // What they have done can't be told from what they have not.
            Fault::DoneOnce if class.changes() => Answer::DoneAndFails(self.order.errno),
            _ if class.changes() => Answer::Fails(self.order.errno),
            _ => Answer::Fails(libc::EIO),
        };
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = if path == self.folder { "folder".to_owned() } else { name };
        if is_hit && self.first.is_none() {
            self.first = Some(class);
            say(&format!("hit {class:?} {name}"));
        }
        if name == "data" && self.order.kind != Kind::Kernel {
            self.follow(call, class, answer);
        }
        if call.number() == libc::SYS_unlinkat && name.ends_with("-journal") {
            self.is_nothing_lost("the journal is removed");
        }
        answer
    }

    /// Follows what is written to the file, and what is durable.
    fn follow(&mut self, call: &Call, class: Class, answer: Answer) {
        let is_done = !matches!(answer, Answer::Fails(_));
        match class {
            Class::Write if is_done => {
                assert_eq!(call.number(), libc::SYS_pwrite64, "others aren't followed");
                let (len, at) = (call.argument(2), call.argument(3));
                let pages = at / P..(at + len).div_ceil(P);
                self.lost.retain(|page| !pages.contains(page));
                self.unsynced.extend(pages);
            }
            Class::Length if is_done => {
                let kept = |page: &u64| *page < call.argument(1).div_ceil(P);
                self.lost.retain(kept);
                self.unsynced.retain(kept);
            }
            Class::Sync if answer != Answer::GoesOn => self.lost.append(&mut self.unsynced),
            Class::Sync => self.unsynced.clear(),
            _ => {}
        }
    }

    /// When something is said to be durable.
    pub fn is_nothing_lost(&self, what: &str) {
        if !self.lost.is_empty() {
            say(&format!("lie: {what}, and pages {:?} of a failed sync were not written again", self.lost));
        }
    }
}
