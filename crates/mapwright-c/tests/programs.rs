//! C programs against the installed library: one for each group of functions, linked with the shared library and with the static
//! one, run natively in both ways of serving faults, and under valgrind; and a program that uses mmap(2) beside the same with mapwright.
//!
//! Needs a C compiler and pkg-config, and for some tests g++ and valgrind: `./test` installs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const FLAGS: [&str; 6] = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g"];
/// For a program, in seconds. Valgrind makes it some fifty times slower, and the machine may be busy.
const LIMIT: &str = "120";
/// In the thread that touches: under valgrind one thread runs at a time, and one that waits for a page in the kernel still counts
/// as running, so that the pager's own thread never gets to serve it. docs/c-interface.md says so.
const IN_THREAD: (&str, &str) = ("MAPWRIGHT_TEST_FAULTS", "in-thread");
const THREAD: (&str, &str) = ("MAPWRIGHT_TEST_FAULTS", "thread");

/// The handler of a fault goes back to the very access: valgrind must have all registers as they were there.
const REGISTERS: &str = "--px-default=allregs-at-mem-access";

/// Skips loudly; in CI, where the machine is chosen to have everything, it fails instead.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this test: {why}");
    eprintln!("######## SKIPPED: {why} ########");
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skip(&format!("there is no {tool}"));
    }
    found
}

fn has_pager() -> bool {
    let machine = mapwright::Machine::probe();
    let missing = machine.userfaultfd.err().or(machine.pagemap_scan.err());
    if let Some(error) = &missing {
        skip(&error.to_string());
    }
    missing.is_none()
}

/// Valgrind does not know userfaultfd(2): there is the device, for those who may open it.
fn has_valgrind() -> bool {
    let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
    if let Err(error) = &device {
        skip(&format!("a pager under valgrind needs /dev/userfaultfd: {error}"));
    }
    device.is_ok() && has("valgrind")
}

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned());
    parts.concat()
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The library, installed as users install it, once.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-prefix");
        let _ = std::fs::remove_dir_all(&prefix);
        let install =
            ["run", "--quiet", "--package", "xtask", "--", "install", "--profile", "dev", "--prefix"];
        run(Command::new(env!("CARGO")).args(install).arg(&prefix));
        prefix
    })
}

fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(arguments).arg("mapwright");
    run(&mut command).split_whitespace().map(str::to_owned).collect()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Library {
    Shared,
    Static,
}

/// Compiles and links a program; it finds the shared library when it runs.
#[track_caller]
fn build(compiler: &str, flags: &[&str], source: &Path, to: &Path, library: Library) {
    let libraries = match library {
        Library::Shared => pkg_config(&["--libs"]),
        Library::Static => pkg_config(&["--libs", "--static"]),
    };
    // Both libraries are in one folder, where the linker prefers the shared one.
    let libraries = libraries.iter().map(|flag| match (flag.as_str(), library) {
        ("-lmapwright", Library::Static) => "-l:libmapwright.a".to_owned(),
        (other, _) => other.to_owned(),
    });
    let rpath = format!("-Wl,-rpath,{}", prefix().join("lib").display());
    let mut command = Command::new(compiler);
    command.args(flags).args(pkg_config(&["--cflags"])).arg(source).arg("-o").arg(to).args(libraries);
    run(command.arg("-pthread").arg(rpath));
}

#[track_caller]
fn program(name: &str, under_valgrind: bool) {
    if !has("cc") || !has("pkg-config") || !has_pager() {
        return;
    }
    let source = manifest().join(format!("programs/{name}.c"));
    for library in [Library::Shared, Library::Static] {
        let dir = scratch();
        let program = dir.path().join(name);
        build("cc", &FLAGS, &source, &program, library);
        for mode in [THREAD, IN_THREAD] {
            native(&program, dir.path(), name, mode);
        }
        if under_valgrind && library == Library::Shared && has_valgrind() {
            valgrind(&program, dir.path(), name);
        }
    }
}

#[track_caller]
fn native(program: &Path, dir: &Path, name: &str, mode: (&str, &str)) {
    let mut command = Command::new("timeout");
    let out = run(command.args(["-s", "KILL", LIMIT]).arg(program).env(mode.0, mode.1).current_dir(dir));
    assert!(out.contains(&format!("{name}: ok")), "{out}");
    check_left(dir, name);
}

#[track_caller]
fn valgrind(program: &Path, dir: &Path, name: &str) {
    let suppressions = format!("--suppressions={}", manifest().join("programs/valgrind.supp").display());
    let leaks = "--errors-for-leak-kinds=definite,indirect,possible";
    let options = ["--quiet", "--error-exitcode=99", "--leak-check=full", leaks, "--fair-sched=yes"];
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", LIMIT, "valgrind", REGISTERS]).args(options).arg(suppressions).arg(program);
    let out = run(command.env(IN_THREAD.0, IN_THREAD.1).current_dir(dir));
    assert!(out.contains(&format!("{name}: ok")), "{out}");
    check_left(dir, name);
}

/// What a program leaves behind.
fn check_left(dir: &Path, name: &str) {
    if name == "at_exit" {
        let left = std::fs::read(dir.join("at-exit")).unwrap();
        assert!(left.starts_with(b"flushed at exit"), "what is mapped at exit is flushed");
    }
}

macro_rules! programs {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            program(stringify!($name), true);
        }
    )*};
}

programs! { errors reading many writing durability shaped kernel shared cache }

/// Not under valgrind, whose search for leaks does not end while a map is open.
#[test]
fn at_exit() {
    program("at_exit", false);
}

#[test]
fn the_header_is_good_for_cpp() {
    if !has("c++") || !has("pkg-config") {
        return;
    }
    let dir = scratch();
    let (source, program) = (dir.path().join("main.cpp"), dir.path().join("main"));
    let body = "#include <mapwright.h>\nint main() { mapwright_map *map = nullptr; return mapwright_map_close(map) == 0 || mapwright_abi_version() != MAPWRIGHT_ABI_VERSION; }\n";
    std::fs::write(&source, body).unwrap();
    build(
        "c++",
        &["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic"],
        &source,
        &program,
        Library::Shared,
    );
    run(&mut Command::new(program));
}

/// The program of docs/c-interface.md.
#[test]
fn the_documented_program_works() {
    if !has("cc") || !has("pkg-config") {
        return;
    }
    let page = std::fs::read_to_string(manifest().join("../../docs/c-interface.md")).unwrap();
    let text = page.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = scratch();
    let (source, program) = (dir.path().join("main.c"), dir.path().join("main"));
    std::fs::write(&source, text).unwrap();
    build("cc", &FLAGS, &source, &program, Library::Shared);
    run(&mut Command::new(program));
}

/// The example of docs/c-interface.md: what a run prints that is killed between two writes, and the next.
#[test]
fn a_transfer_that_is_killed_did_not_happen() {
    use std::os::unix::process::ExitStatusExt;
    if !has("cc") || !has("pkg-config") || !has_pager() {
        return;
    }
    let page = std::fs::read_to_string(manifest().join("../../docs/c-interface.md")).unwrap();
    let shown = page.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = scratch();
    build(
        "cc",
        &FLAGS,
        &manifest().join("examples/transfer.c"),
        &dir.path().join("transfer"),
        Library::Shared,
    );
    let mut seen = String::new();
    for line in shown.lines().filter(|line| line.starts_with("$ ")) {
        let mut words = line[2..].split(' ');
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", LIMIT]).arg(words.next().unwrap()).args(words).current_dir(dir.path());
        let output = command.output().unwrap();
        let signal = output.status.signal().or(output.status.code().map(|code| code - 128));
        seen += &format!("{line}\n{}", text(&output));
        if signal == Some(9) {
            seen += "Killed\n";
        }
    }
    assert_eq!(seen, shown);
}

/// Functions of the header.
fn functions() -> Vec<String> {
    let header = std::fs::read_to_string(prefix().join("include/mapwright.h")).unwrap();
    let code = header.lines().filter(|line| !line.trim_start().starts_with(['*', '/', '#']));
    let mut names: Vec<String> = code
        .filter_map(|line| {
            let (before, _) = line.split_once('(')?;
            let name = before.rsplit([' ', '*']).next()?;
            name.starts_with("mapwright_").then(|| name.to_owned())
        })
        .collect();
    names.sort();
    names
}

#[test]
fn the_library_exports_what_the_header_has() {
    if !has("nm") || !has("readelf") {
        return;
    }
    let library = prefix().join("lib/libmapwright.so");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let mut symbols: Vec<String> =
        symbols.lines().filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect();
    symbols.sort();
    assert_eq!(symbols, functions());
    let dynamic = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("soname: [libmapwright.so.0]"), "{dynamic}");
}

#[test]
fn everything_is_installed() {
    let prefix = prefix();
    for file in [
        "bin/mapwright",
        "include/mapwright.h",
        "lib/libmapwright.a",
        "lib/libmapwright.so",
        "lib/libmapwright.so.0",
        concat!("lib/libmapwright.so.", env!("CARGO_PKG_VERSION")),
        "lib/pkgconfig/mapwright.pc",
        "share/man/man1/mapwright.1",
        "share/man/man1/mapwright-cache.1",
        "share/bash-completion/completions/mapwright",
        "share/zsh/site-functions/_mapwright",
        "share/fish/vendor_completions.d/mapwright.fish",
    ] {
        assert!(std::fs::metadata(prefix.join(file)).is_ok_and(|file| file.len() > 100), "{file}");
    }
    if has("pkg-config") {
        assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    }
}

/// A program of mmap(2)'s, and the same with every call renamed: they print the same and leave the same file.
#[test]
fn a_program_that_uses_mmap_is_ported_by_renaming() {
    let source = |name: &str| std::fs::read_to_string(manifest().join(format!("programs/{name}.c"))).unwrap();
    let without_header =
        |text: String| text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>();
    let renamed = source("port_after").replace("#include <mapwright.h>\n", "").replace("mapwright_", "");
    assert_eq!(without_header(renamed), without_header(source("port_before")), "only names differ");
    if !has("cc") || !has("pkg-config") || !has_pager() {
        return;
    }
    let outcome = |name: &str| {
        let dir = scratch();
        let (program, file) = (dir.path().join(name), dir.path().join("file"));
        std::fs::write(&file, "a line that is long enough\nanother\n".repeat(20_000)).unwrap();
        build("cc", &FLAGS, &manifest().join(format!("programs/{name}.c")), &program, Library::Shared);
        let mut command = Command::new("timeout");
        let out = run(command.args(["-s", "KILL", LIMIT]).arg(&program).arg("file").current_dir(dir.path()));
        (out, std::fs::read(&file).unwrap())
    };
    let (before, after) = (outcome("port_before"), outcome("port_after"));
    assert!(
        before.0.contains("40000 lines, 12 bytes added") && before.1.starts_with(b"A line"),
        "{}",
        before.0
    );
    assert_eq!(before.0, after.0);
    assert!(before.1 == after.1, "the files differ");
}
