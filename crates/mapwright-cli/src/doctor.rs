//! `mapwright doctor`.
use crate::failure::Result;
/// Say what this machine allows
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}
/// Prints it.
pub fn doctor(options: &Options) -> Result<()> {
    let _ = options.json;
    Ok(())
}
