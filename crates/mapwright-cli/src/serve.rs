//! `mapwright serve`: a pager server, until a signal ends it.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use mapwright::{Pager, Server};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;

use crate::wait::Stopper;

const EXAMPLES: &str = "\
Examples:
  mapwright serve --socket /run/user/1000/pager
                                   serve with a quarter of the free memory
  mapwright serve --socket pager --limit 512MiB
                                   with 512 MiB for all files of all clients

Programs connect with Pager::connect. Ctrl-C, SIGTERM or SIGHUP ends the server, once what clients wrote is in their files; a client
that touches what it has not seen yet then stops with a message.

Exit codes: 0 ended by a signal; 1 it could not listen; 2 bad usage.";

/// Serve one page cache to many processes
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The socket to listen on, made anew with mode 0600
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The most memory to use, frames and tables together [default: a quarter of what is available]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    limit: Option<u64>,
}

/// Serves until a signal comes.
pub fn serve(options: &Options) -> Result<()> {
    let failed = |error: mapwright::Error| Failure::Message(error.to_string());
    let stopper = Stopper::new()?;
    raise_descriptor_limit();
    let builder = options.limit.map_or_else(Pager::builder, |bytes| Pager::builder().budget(bytes));
    let pager = builder.build().map_err(failed)?;
    let server = Server::bind(&pager, &options.socket).map_err(failed)?;
    let (path, budget) = (server.path().display(), size::show(pager.budget()));
    // Whoever reads this may have gone, which is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "serving {budget} at {path}; Ctrl-C ends it");
    stopper.wait(None)?;
    let clients = server.clients();
    drop(server);
    let stats = pager.stats();
    let _ = writeln!(
        std::io::stdout(),
        "ended with {clients} clients: {} faults, {} read, {} blocks evicted",
        stats.faults,
        size::show(stats.filled_bytes),
        stats.evictions
    );
    Ok(())
}

/// Every client and every file takes some descriptors: as many as this process may have. Where that is refused, the limit
/// stays what it was.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
