//! Signals of a process that runs another one: taken in turn, passed on, and died of.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::check;

/// Whether this process was started with SIGPIPE ignored, as services are: Rust's own start ignores it anyway, before `main`.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Called by the loader, before that.
extern "C" fn look_at_pipe() {
    PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is set; the second pointer is to a structure of that type, which the call fills if it returns 0.
    let found = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: filled, because the call returned 0.
    found == 0 && unsafe { action.assume_init_ref() }.sa_sigaction == libc::SIG_IGN
}

#[used]
// SAFETY: the loader calls what is listed there, as a function without arguments that it needs.
#[unsafe(link_section = ".init_array")]
static LOOK_AT_PIPE: extern "C" fn() = look_at_pipe;

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Whether a process has sent it. What the kernel sends, a terminal's Ctrl-C, goes to all processes of a group at once.
    pub by_process: bool,
}

/// Signals that are blocked, in the thread that has called [`block`](Self::block) and those that it starts afterwards.
pub struct Blocked {
    signals: libc::sigset_t,
    /// What was blocked before.
    before: libc::sigset_t,
    /// SIGCHLD was ignored: whoever ignores it hears of no child's end.
    child_ignored: bool,
}

impl Blocked {
    /// Blocks signals, to be taken by [`wait`](Self::wait), and ends that SIGCHLD is ignored, if it is one of them. Call it before other
    /// threads are there.
    ///
    /// # Errors
    /// `EINVAL` for a number that no signal has.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let child_ignored = signals.contains(&libc::SIGCHLD) && is_ignored(libc::SIGCHLD);
        if child_ignored {
            // SAFETY: no handler is set.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        }
        let (signals, mut before) = (set_of(signals)?, set_of(&[])?);
        // SAFETY: both sets are valid for the call, which fills the second.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, &raw mut before) } {
            0 => Ok(Self { signals, before, child_ignored }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Lets a program be started with the signals blocked that were before, and no others; and with those ignored that were when this
    /// process was started.
    pub fn restore_in(&self, command: &mut Command) {
        let before = self.before;
        let ignored =
            [(libc::SIGCHLD, self.child_ignored), (libc::SIGPIPE, PIPE_IGNORED.load(Ordering::Relaxed))];
        let restore = move || {
            for (signal, _) in ignored.iter().filter(|(_, was_ignored)| *was_ignored) {
                // SAFETY: no handler is set, in a process that is about to be another program.
                unsafe { libc::signal(*signal, libc::SIG_IGN) };
            }
            // SAFETY: the set is valid for the call, and the old one is not asked for.
            match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) }
            {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: what runs between fork and exec are system calls: they allocate nothing and take no lock.
        unsafe { command.pre_exec(restore) };
    }

    /// Waits for one of the signals, and takes it.
    ///
    /// # Errors
    /// None that Linux knows of.
    pub fn wait(&self) -> io::Result<Arrived> {
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        loop {
            // SAFETY: the set is valid, and `info` is filled when a signal is returned.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.signals, info.as_mut_ptr()) };
            match check(signal.into()) {
                Ok(_) => {
                    // SAFETY: filled, because a signal was returned.
                    let code = unsafe { info.assume_init_ref() }.si_code;
                    return Ok(Arrived { signal, by_process: code <= 0 });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocked").finish_non_exhaustive()
    }
}

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set, which is emptied.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) }.into())?;
    for &signal in signals {
        // SAFETY: the set was made above.
        check(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) }.into())?;
    }
    // SAFETY: made above.
    Ok(unsafe { set.assume_init() })
}

/// Ends this process by a signal, as if it had never been handled, without another core dump. Returns if that signal does not end
/// processes.
///
/// # Errors
/// `EINVAL` for a number that no signal has.
pub fn end_by(signal: i32) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let set = set_of(&[signal])?;
    // SAFETY: the default action replaces whatever this process has set; nothing of it runs any more.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: the set is valid for the call, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: raises a signal in this thread.
    check(unsafe { libc::raise(signal) }.into()).map(drop)
}

/// Stops this process by a signal that is blocked, as if it had never been, until it is continued.
///
/// # Errors
/// `EINVAL` for a number that no signal has.
pub fn stop_by(signal: i32) -> io::Result<()> {
    let (set, mut before) = (set_of(&[signal])?, set_of(&[])?);
    // SAFETY: raises a signal in this thread, which blocks it.
    check(unsafe { libc::raise(signal) }.into())?;
    // SAFETY: the sets are valid for the call, which fills the second. Here the process stops.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, &raw mut before) };
    // SAFETY: filled by the call before; the old set is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_with_who_sent_it() {
        let thread = std::thread::spawn(|| {
            let blocked = Blocked::block(&[libc::SIGUSR2]).unwrap();
            // SAFETY: sends a signal to this thread, which blocks it.
            assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
            blocked.wait().unwrap()
        });
        assert_eq!(thread.join().unwrap(), Arrived { signal: libc::SIGUSR2, by_process: true });
        assert_eq!(Blocked::block(&[4711]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_program_is_started_without_what_is_blocked() {
        let thread = std::thread::spawn(|| {
            let blocked = Blocked::block(&[libc::SIGUSR2]).unwrap();
            let status = |restore: bool| {
                let mut command = Command::new("grep");
                command.args(["SigBlk", "/proc/self/status"]);
                if restore {
                    blocked.restore_in(&mut command);
                }
                let output = command.output().unwrap().stdout;
                u64::from_str_radix(String::from_utf8(output).unwrap()[8..].trim(), 16).unwrap()
            };
            (status(false), status(true))
        });
        let bit = 1 << (libc::SIGUSR2 - 1);
        let (inherited, restored) = thread.join().unwrap();
        assert_eq!((inherited & bit, restored & bit), (bit, 0));
    }

    #[test]
    fn a_process_stops_by_a_signal_and_goes_on() {
        // SAFETY: the child makes system calls alone, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let blocked = Blocked::block(&[libc::SIGTSTP]);
            // Of a group of its own, whose parent is in another of the same session: one without such a parent is not stopped by this signal.
            // SAFETY: makes this process the leader of a group.
            unsafe { libc::setpgid(0, 0) };
            let went_on = blocked.is_ok() && stop_by(libc::SIGTSTP).is_ok();
            // SAFETY: ends the process without running anything of its parent's.
            unsafe { libc::_exit(i32::from(!went_on)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) }, child);
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTSTP, "{status:#x}");
        // SAFETY: a signal to the child made above, which waits for it.
        assert_eq!(unsafe { libc::kill(child, libc::SIGCONT) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    }

    #[test]
    fn a_process_ends_by_a_signal() {
        // SAFETY: the child makes system calls alone, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _ = end_by(libc::SIGTERM);
            // SAFETY: ends the process without running anything of its parent's.
            unsafe { libc::_exit(9) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTERM, "{status:#x}");
    }
}
