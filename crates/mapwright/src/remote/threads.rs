//! How many threads a client's program has.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// The threads of a process, by the folder of them in /proc, of which there may be none.
#[derive(Debug)]
pub(super) struct Threads(Option<OwnedFd>);

impl Threads {
    /// Those of a process, for as long as it lives.
    pub(super) fn of(process: Option<Pid>) -> Self {
        let folder = process.and_then(|process| {
            let path = format!("/proc/{}/task", process.as_raw_nonzero());
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
        });
        Self(folder)
    }

    /// How many there are: the links of the folder are two more (fs/proc/base.c, `proc_task_getattr`). `None` when it is gone, or where that
    /// is not told.
    pub(super) fn count(&self) -> Option<usize> {
        let links = usize::try_from(rustix::fs::fstat(self.0.as_ref()?).ok()?.st_nlink).ok()?;
        links.checked_sub(2).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = Threads::of(Some(Pid::from_child(&child)));
        let own = Threads::of(Some(rustix::process::getpid()));
        assert_eq!(of_child.count(), Some(1));
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || told.recv());
            assert!(own.count().is_some_and(|count| count >= 2));
            drop(tell);
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_child.count(), None, "it is gone");
        assert_eq!(Threads::of(None).count(), None);
    }
}
