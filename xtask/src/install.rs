//! Installs what users get: the command with its man pages and completions, and the C library with its header and pkg-config file.
//!
//! ```text
//! PREFIX/bin/mapwright
//! PREFIX/include/mapwright.h
//! PREFIX/lib/libmapwright.a, libmapwright.so -> libmapwright.so.ABI -> libmapwright.so.VERSION
//! PREFIX/lib/pkgconfig/mapwright.pc
//! PREFIX/share/man/man1, PREFIX/share/bash-completion, …/zsh, …/fish
//! ```
//!
//! With `--destdir` all of it is written below another folder, which is not in the paths that are written into files: for packages.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::files;

/// How to call it.
pub const USAGE: &str = "usage: cargo xtask install [--prefix DIR] [--destdir DIR] [--profile NAME]";
/// What a static library of Rust's needs besides itself: `rustc --print native-static-libs`.
const PRIVATE_LIBS: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";
const HEADER: &str = "crates/mapwright-c/include/mapwright.h";

struct Options {
    prefix: PathBuf,
    destdir: Option<PathBuf>,
    profile: String,
}

/// Builds and installs.
pub fn run(arguments: &[&str]) -> ExitCode {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("xtask: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match build(&options).and_then(|()| install(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let mut options = Options { prefix: "/usr/local".into(), destdir: None, profile: "release".to_owned() };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match *name {
            "--prefix" => options.prefix = value.into(),
            "--destdir" => options.destdir = Some(value.into()),
            "--profile" => options.profile = (*value).to_owned(),
            _ => return Err(format!("{name} {value}")),
        }
    }
    if !options.prefix.is_absolute() || options.destdir.as_ref().is_some_and(|folder| !folder.is_absolute()) {
        return Err("--prefix and --destdir are absolute paths".to_owned());
    }
    Ok(options)
}

fn build(options: &Options) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args([
        "build",
        "--quiet",
        "--profile",
        &options.profile,
        "-p",
        "mapwright-c",
        "-p",
        "mapwright-cli",
    ]);
    match build.current_dir(files::root()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the build failed: {status}")),
        Err(error) => Err(format!("cargo could not be started: {error}")),
    }
}

fn install(options: &Options) -> Result<(), String> {
    let root = files::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = if options.profile == "dev" { "debug" } else { &options.profile };
    let built = root.join(target).join(folder);
    let place = match &options.destdir {
        Some(destdir) => destdir.join(options.prefix.strip_prefix("/").unwrap_or(&options.prefix)),
        None => options.prefix.clone(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let header = read(&root.join(HEADER))?;
    let abi = abi(&header)?;

    copy(&root.join(HEADER), &place.join("include/mapwright.h"), 0o644)?;
    let lib = place.join("lib");
    let [full, soname] = [format!("libmapwright.so.{version}"), format!("libmapwright.so.{abi}")];
    copy(&built.join("libmapwright_c.so"), &lib.join(&full), 0o755)?;
    link(&full, &lib.join(&soname))?;
    link(&soname, &lib.join("libmapwright.so"))?;
    copy(&built.join("libmapwright_c.a"), &lib.join("libmapwright.a"), 0o644)?;
    write(&lib.join("pkgconfig/mapwright.pc"), &pkg_config(&options.prefix, version))?;
    command(&built.join("mapwright"), &place)?;
    println!("installed below {}", place.display());
    Ok(())
}

/// The command, and what it says of itself.
fn command(program: &Path, place: &Path) -> Result<(), String> {
    copy(program, &place.join("bin/mapwright"), 0o755)?;
    let man = place.join("share/man/man1");
    make_folder(&man)?;
    output(program, &["man-pages".into(), man.into()])?;
    let shells = [
        ("bash", "share/bash-completion/completions/mapwright"),
        ("zsh", "share/zsh/site-functions/_mapwright"),
        ("fish", "share/fish/vendor_completions.d/mapwright.fish"),
    ];
    for (shell, path) in shells {
        write(&place.join(path), &output(program, &["completions".into(), shell.into()])?)?;
    }
    Ok(())
}

/// The number of the binary interface, as the header has it.
fn abi(header: &str) -> Result<&str, String> {
    let line = header.lines().find_map(|line| line.strip_prefix("#define MAPWRIGHT_ABI_VERSION "));
    line.map(str::trim).ok_or_else(|| format!("{HEADER} has no MAPWRIGHT_ABI_VERSION"))
}

fn pkg_config(prefix: &Path, version: &str) -> String {
    let prefix = prefix.display();
    format!(
        "prefix={prefix}\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
         Name: mapwright\nDescription: Memory-mapped files in user space\nVersion: {version}\n\
         Cflags: -I${{includedir}}\nLibs: -L${{libdir}} -lmapwright\nLibs.private: {PRIVATE_LIBS}\n"
    )
}

fn failed(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(failed(path))
}

fn make_folder(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(failed(path))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    path.parent().map_or(Ok(()), make_folder)?;
    fs::write(path, text).map_err(failed(path))
}

/// Copies to a new file beside it, and renames: a library that is in use is not written to.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), String> {
    to.parent().map_or(Ok(()), make_folder)?;
    let mut new = OsString::from(to);
    new.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(new);
    fs::copy(from, &new).map_err(failed(from))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(failed(&new))?;
    fs::rename(&new, to).map_err(failed(to))
}

fn link(to: &str, at: &Path) -> Result<(), String> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(at)(error)),
        _ => {}
    }
    symlink(to, at).map_err(failed(at))
}

fn output(program: &Path, arguments: &[OsString]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(failed(program))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}: {words}", program.display(), output.status));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("{}: {error}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = parse(&["--prefix", "/opt/x", "--profile", "dev"]).ok();
        assert_eq!(
            options.map(|options| (options.prefix, options.profile)),
            Some(("/opt/x".into(), "dev".to_owned()))
        );
        for bad in [&["--prefix"][..], &["--prefix", "x"], &["--what", "x"], &["--only", "x"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_binary_interface_has_one_number() {
        let header = read(&files::root().join(HEADER)).unwrap();
        let build = read(&files::root().join("crates/mapwright-c/build.rs")).unwrap();
        let abi = abi(&header).unwrap();
        assert!(build.contains(&format!("const ABI: u32 = {abi};")), "{abi}");
        assert!(super::abi("nothing").is_err());
    }

    #[test]
    fn the_file_for_pkg_config_names_the_prefix() {
        let text = pkg_config(Path::new("/opt/x"), "1.2.3");
        assert!(text.starts_with("prefix=/opt/x\n") && text.contains("\nVersion: 1.2.3\n"), "{text}");
    }
}
