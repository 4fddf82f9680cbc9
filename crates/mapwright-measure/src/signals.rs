//! SIGINT and SIGTERM set a flag. Long work asks for it, returns `Failure::Interrupted`, and the guards on the way out
//! remove samples, copies and cgroups and put settings back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::failure::{Failure, Result};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on SIGINT, SIGTERM and SIGHUP are noticed by [`check`] instead of ending the process.
pub fn install() -> Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(|error| Failure::Message(format!("cannot handle signal {signal}: {error}")))?;
    }
    Ok(())
}

/// Fails when a signal has arrived since [`install`].
pub fn check() -> Result<()> {
    match FLAG.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Failure::Interrupted),
        _ => Ok(()),
    }
}
