//! What is generated from the command line's own description: completions for shells, and man pages.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use mapwright_measure::failure::{Failure, Result};

use crate::text;

const EXAMPLES: &str = "\
Examples:
  mapwright completions bash > ~/.local/share/bash-completion/completions/mapwright
  mapwright completions zsh > ~/.zfunc/_mapwright
  mapwright completions fish > ~/.config/fish/completions/mapwright.fish

Exit codes: 0 done, 1 it could not be written, 2 bad usage.";

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the man pages
#[derive(Debug, Args)]
pub struct ManPages {
    /// The folder to write them to, made if it is not there
    folder: PathBuf,
}

/// Prints completions.
pub fn completions(options: &Completions, command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut visible(&command), "mapwright", &mut script);
    text::print(&String::from_utf8_lossy(&script))
}

/// Writes one page for the command and one for each of its commands.
pub fn man_pages(options: &ManPages, command: Command) -> Result<()> {
    let folder = &options.folder;
    fs::create_dir_all(folder).map_err(|error| Failure::io("cannot make the folder", folder, error))?;
    let mut command = visible(&command).disable_help_subcommand(true);
    command.build();
    write_page(folder, &command)?;
    command.get_subcommands().try_for_each(|command| write_page(folder, command))
}

/// The command without what is hidden: the processes that a command starts for itself are nobody else's.
fn visible(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let version = env!("CARGO_PKG_VERSION");
    let mut bare = Command::new("mapwright").version(version).subcommand_required(true).subcommands(shown);
    if let Some(about) = command.get_about() {
        bare = bare.about(about.clone());
    }
    bare
}

fn write_page(folder: &Path, command: &Command) -> Result<()> {
    let man = Man::new(command.clone());
    let path = folder.join(man.get_filename());
    let failed = |error| Failure::io("cannot write", &path, error);
    let mut page = Vec::new();
    man.render_title(&mut page).map_err(failed)?;
    man.render_name_section(&mut page).map_err(failed)?;
    man.render_synopsis_section(&mut page).map_err(failed)?;
    man.render_description_section(&mut page).map_err(failed)?;
    man.render_options_section(&mut page).map_err(failed)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page).map_err(failed)?;
    }
    // clap's own section of what comes last would be filled into one paragraph.
    if let Some(last) = command.get_after_help() {
        page.extend_from_slice(section(&last.to_string()).as_bytes());
    }
    fs::File::create(&path).and_then(|mut file| file.write_all(&page)).map_err(failed)
}

/// Lines as they are, below the heading that the first of them is.
fn section(text: &str) -> String {
    let (heading, lines) = text.split_once(":\n").unwrap_or(("EXTRA", text));
    let mut section = format!(".SH {}\n.nf\n", heading.to_uppercase());
    for line in lines.lines() {
        // A line that begins with a point or an apostrophe would be a request.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        section += &format!("{guard}{}\n", line.replace('\\', "\\e").replace('-', "\\-"));
    }
    section + ".fi\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_lines_and_are_no_requests() {
        assert_eq!(
            section("Examples:\n  a -b \\x20\n.start\n'x"),
            ".SH EXAMPLES\n.nf\n  a \\-b \\ex20\n\\&.start\n\\&'x\n.fi\n"
        );
        assert!(section("only this").starts_with(".SH EXTRA\n.nf\nonly this\n"));
    }
}
