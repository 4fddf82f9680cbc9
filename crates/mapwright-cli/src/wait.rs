//! Waiting for a signal or for time to pass, whichever comes first.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mapwright_measure::failure::{Failure, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// SIGINT, SIGTERM and SIGHUP no longer end the process: they end [`wait`](Self::wait).
pub struct Stopper(UnixStream);

impl Stopper {
    /// Handles the signals from here on. A signal that comes before [`wait`](Self::wait) is not lost.
    pub fn new() -> Result<Self> {
        let make = || -> io::Result<Self> {
            let (told, tell) = UnixStream::pair()?;
            for signal in [SIGINT, SIGTERM, SIGHUP] {
                signal_hook::low_level::pipe::register(signal, tell.try_clone()?)?;
            }
            told.set_nonblocking(true)?;
            Ok(Self(told))
        };
        make().map_err(|error| Failure::Message(format!("cannot handle signals: {error}")))
    }

    /// Waits for a signal, at most so long. Whether one came.
    pub fn wait(&self, at_most: Option<Duration>) -> Result<bool> {
        let limit = at_most.map(|time| Timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, limit.as_ref()) {
                // The handler has written to the pipe before the call is interrupted: the next one returns at once.
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Failure::Message(format!("cannot wait: {error}"))),
                Ok(0) => return Ok(false),
                Ok(_) => {
                    let _ = (&self.0).read(&mut [0; 16]);
                    return Ok(true);
                }
            }
        }
    }
}
