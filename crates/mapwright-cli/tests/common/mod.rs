//! What the tests of the commands share: running the real binary, and saying loudly what was left out.
#![allow(dead_code, reason = "not every test file uses every helper")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mapwright::Machine;
use serde_json::Value;
use tempfile::TempDir;

/// The binary with arguments, in a folder.
pub fn mapwright(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mapwright"));
    command.args(arguments).current_dir(dir).env_remove("TMPDIR").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(dir: &Path, arguments: &[&str]) -> Output {
    mapwright(dir, arguments).output().unwrap()
}

/// Runs it, expects an exit code, and gives stdout and stderr.
#[track_caller]
pub fn expect(dir: &Path, arguments: &[&str], code: i32) -> (String, String) {
    let output = run(dir, arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}:\n{stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}

/// Runs it with `--json` and gives what it printed.
#[track_caller]
pub fn json(dir: &Path, arguments: &[&str], code: i32) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let (stdout, stderr) = expect(dir, &arguments, code);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder of the build, on a real file system where the build is on one.
pub fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The source of a program of the tests.
pub fn source(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The files of a program in C, which is one of them or all in a folder, and their headers.
fn parts(from: &str) -> (Vec<String>, Vec<String>) {
    let path = source(from);
    if !Path::new(&path).is_dir() {
        return (vec![path], ["file.h", "by_syscall.h", "descriptors_by_syscall.h"].map(source).to_vec());
    }
    let entries = std::fs::read_dir(path).unwrap();
    let mut all: Vec<String> =
        entries.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
    all.sort();
    all.into_iter().partition(|part| part.ends_with(".c"))
}

/// Compiles a program in C; says loudly where that can't be. Each test may be a process of its own, and others may be running what is
/// there: what was compiled of the same text is not replaced.
#[track_caller]
pub fn compile(name: &str, from: &str, flags: &[&str]) -> Option<String> {
    let mut text_of_all = DefaultHasher::new();
    flags.hash(&mut text_of_all);
    let (sources, headers) = parts(from);
    for part in sources.iter().chain(&headers) {
        std::fs::read(part).unwrap().hash(&mut text_of_all);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-{:016x}", text_of_all.finish()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join(name);
    if !program.exists() {
        let new = program.with_extension(std::process::id().to_string());
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-D_GNU_SOURCE", "-pthread"]);
        match cc.args(flags).args(&sources).arg("-o").arg(&new).output() {
            Ok(output) => assert!(output.status.success(), "{}", text(&output.stderr)),
            Err(error) => {
                skip(&format!("there is no cc: {error}"));
                return None;
            }
        }
        if let Err(error) = std::fs::hard_link(&new, &program) {
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        }
        std::fs::remove_file(new).unwrap();
    }
    Some(program.to_str().unwrap().to_owned())
}

/// Bytes that are all different from page to page, by a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether `mapwright run` can serve anything here.
#[track_caller]
pub fn serves() -> bool {
    const DISKS: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1]; // ext, XFS, btrfs, F2FS, ZFS
    let magic = rustix::fs::statfs(env!("CARGO_TARGET_TMPDIR")).unwrap().f_type as u64;
    if !DISKS.contains(&magic) {
        skip(&format!(
            "the build folder is on a file system that gives no leases that hold ({magic:#x}): set CARGO_TARGET_DIR"
        ));
        return false;
    }
    match Machine::probe().userfaultfd {
        Ok(facts) if !facts.user_mode_only => true,
        Ok(_) => {
            skip("this user's userfaultfd does not serve system calls");
            false
        }
        Err(error) => {
            skip(&error.to_string());
            false
        }
    }
}

/// Says that a part of a test was left out because this machine lacks something. Not in CI, which has everything.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this test: {why}");
    eprintln!("######## SKIPPED: {why} ########");
}

/// Says that a test was left out because it does not run as root, which CI need not either.
pub fn not_root(why: &str) {
    eprintln!("######## SKIPPED: only root can do this: {why} ########");
}

/// Runs a tool to compare with, if it is installed: what it prints; that it succeeds is part of the test. Where it is not
/// installed the comparison is left out loudly, also in CI, which need not have it.
#[track_caller]
pub fn other_tool(dir: &Path, name: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(name).args(arguments).current_dir(dir).env("LC_ALL", "C").output() {
        Ok(output) => {
            assert!(output.status.success(), "{name} {arguments:?}: {}", text(&output.stderr));
            Some(text(&output.stdout))
        }
        Err(error) => {
            eprintln!(
                "######## SKIPPED: the comparison with {name}, which does not run here: {error} ########"
            );
            None
        }
    }
}
