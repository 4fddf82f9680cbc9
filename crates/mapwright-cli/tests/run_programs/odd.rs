//! What programs do that a shim may trip over: roots of their own, rights given up, environments emptied, signals, few descriptors, deaths.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::common::{folder, not_root, serves, text};
use crate::trial::{
    MIB, MORE_THAN_ONCE, OPEN_FOR_WRITING, Report, Trial, beside_the_build, clean, compile, have, noise,
    source,
};

fn odd() -> Option<&'static str> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("odd", "odd.c", &[])).as_deref()
}

fn file(dir: &Path) {
    std::fs::write(dir.join("file"), noise(5, 4 * MIB + 123)).unwrap();
}

/// Runs one part of the program in C, which says whether it is right.
#[track_caller]
fn part(program: &str, what: &str) -> Option<Report> {
    let trial = Trial::new(&[program, what, "file"]).on(file).saying(|output| {
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("right\n", ""));
        String::new()
    });
    trial.tight().run()?.pop()
}

/// As which it runs: what root alone can do is left out elsewhere.
fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_root(what);
    }
    is_root
}

#[test]
fn a_program_may_lock_itself_in() {
    let Some(odd) = odd() else { return };
    if !is_root("chroot(2) and setuid(2)") {
        return;
    }
    for (what, why) in [("chroot", "No such file"), ("unprivileged", "Permission denied")] {
        let Some(report) = part(odd, what) else { return };
        assert!(report.served("/file") >= 1, "{:#}", report.0);
        report.is_the_kernels("/file", why); // a connection that came too late
    }
}

#[test]
fn programs_start_others_in_long_chains_and_with_empty_environments() {
    let Some(odd) = odd() else { return };
    for (what, programs, maps) in [("chain40", 41, 41), ("clear", 1, 1), ("spawn", 5, 5)] {
        let Some(report) = part(odd, what) else { return };
        assert_eq!(
            (report.programs("odd"), report.served("/file")),
            (programs, maps),
            "{what}: {:#}",
            report.0
        );
    }
    // By others: without the shim, and with the shim but without the server's address.
    for environment in [&["-i"][..], &["-u", "MAPWRIGHT_RUN_SOCKET"], &["-u", "MAPWRIGHT_RUN_REPORT"]] {
        let command = [&["env"], environment, &[odd, "look", "file"]].concat();
        for report in Trial::new(&command).on(file).tight().run().into_iter().flatten() {
            assert_eq!(report.served("/file"), 0, "{:#}", report.0);
        }
    }
}

#[test]
fn maps_are_made_in_signal_handlers_and_by_threads_that_are_cancelled() {
    let Some(odd) = odd() else { return };
    for what in ["handlers", "cancel", "stack"] {
        let Some(report) = part(odd, what) else { return };
        assert!(report.served("/file") >= 2, "{what}: {:#}", report.0);
    }
}

#[test]
fn children_are_forked_while_threads_map() {
    let Some(odd) = odd() else { return };
    let Some(report) = part(odd, "storm") else { return };
    assert!(report.served("/file") >= 1 + 3 + 20, "{:#}", report.0);
}

#[test]
fn descriptors_and_address_space_may_be_short() {
    let Some(odd) = odd() else { return };
    let Some(report) = part(odd, "descriptors") else { return };
    assert_eq!(report.served("/file"), 1, "{:#}", report.0);
    part(odd, "few");
    let Some(report) = part(odd, "space") else { return };
    report.is_the_kernels("/file", "RLIMIT_AS");
}

/// It knows of one thread, and the shim has another.
#[test]
fn a_program_may_have_a_malloc_of_its_own() {
    let Some(odd) = compile("odd-malloc", "odd.c", &["-DOWN_MALLOC"]) else { return };
    let Some(report) = part(&odd, "malloc") else { return };
    assert_eq!(report.served("/file"), 30, "{:#}", report.0);
    let Some(report) = part(&odd, "spawn") else { return };
    assert_eq!(report.served("/file"), 5, "{:#}", report.0);
}

#[test]
fn a_counter_is_exact_though_processes_are_killed() {
    let Some(counter) = compile("counter", "counter.c", &[]) else { return };
    let made = |dir: &Path| std::fs::write(dir.join("file"), "").unwrap();
    // How much was counted by those that were killed differs.
    let Some(reports) = Trial::new(&[&counter, "file"]).on(made).leaving(|_| false).run() else { return };
    for report in reports {
        report.is_the_kernels("/file", MORE_THAN_ONCE);
        report.is_the_kernels("/file", OPEN_FOR_WRITING);
    }
}

/// `run` with a program, or the program alone.
fn maybe_run(with: bool, program: &[&str]) -> Command {
    const RUN: [&str; 5] = [env!("CARGO_BIN_EXE_mapwright"), "run", "--limit", "4MiB", "--"];
    let all = [if with { &RUN[..] } else { &[] }, program].concat();
    let mut command = Command::new(all[0]);
    clean(command.args(&all[1..]));
    command
}

/// What a program says and how it ends, without `run` and with it.
#[track_caller]
fn same_with_and_without(dir: &Path, before: &[&str], program: &[&str], say: fn(&Output) -> String) {
    let said = [false, true].map(|with| {
        let run = maybe_run(with, program);
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60"]).args(before).arg(run.get_program()).args(run.get_args());
        let output = clean(command.current_dir(dir)).output().unwrap();
        (output.status.code(), output.status.signal(), say(&output))
    });
    assert_eq!(said[0], said[1], "{before:?} {program:?}: without run, and with it");
}

#[test]
fn signals_are_ignored_and_blocked_as_they_were() {
    let dir = folder();
    let status = ["grep", "^Sig[BIC]", "/proc/self/status"];
    // Two numbers are the C library's own: its first thread sets what is done with them, and no program is told of them.
    let out = |output: &Output| {
        let number = |line: &str| u64::from_str_radix(&line[8..], 16).unwrap() & !(3 << 31);
        let all: Vec<_> =
            text(&output.stdout).lines().map(|line| format!("{} {:x}", &line[..7], number(line))).collect();
        all.join(" ")
    };
    for before in [
        &["env"][..],
        &["env", "--ignore-signal=PIPE"],
        &["env", "--ignore-signal=HUP,INT,PIPE,CHLD"],
        &["env", "--block-signal=USR1,PIPE,CHLD"],
    ] {
        same_with_and_without(dir.path(), before, &status, out);
    }
}

/// Who reads has gone.
#[test]
fn a_program_dies_of_a_broken_pipe() {
    let ends = [false, true].map(|with| {
        let mut yes = maybe_run(with, &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(yes.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (line, yes.wait().unwrap().signal())
    });
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[1], ("y\n".to_owned(), Some(13)));
}

#[test]
fn a_terminal_is_the_programs() {
    let Some(python) = beside_the_build("python/bin/python") else { return };
    let dir = folder();
    let terminal = source("terminal.py");
    let trap = "trap 'echo trapped; exit 3' INT; echo ready; while :; do sleep 0.02; done";
    for (keys, program, says) in [
        (".C", &["sh", "-c", trap][..], "trapped"),
        (".C", &["sh", "-c", "echo ready; exec sleep 100"], "-2"), // SIGINT
        ("D", &["cat"], "0"),
        ("", &["sh", "-c", "test -t 0 && test -t 1 && tty < /dev/tty > /dev/null && stty size"], "0"),
    ] {
        let said = [false, true].map(|with| {
            let run = maybe_run(with, program);
            let mut command = Command::new(&python);
            command
                .args([&terminal, keys])
                .arg(run.get_program())
                .args(run.get_args())
                .current_dir(dir.path());
            let output = clean(&mut command).output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        });
        assert_eq!(said[0], said[1], "{program:?}: without run, and with it");
        assert!(said[1].contains(says) && said[1].matches("trapped").count() <= 1, "{said:?}");
    }
}

/// `run` ends with the program that it has started; a daemon goes on, on the kernel's maps.
#[test]
fn a_daemon_outlives_the_program_that_started_it() {
    let Some(odd) = odd() else { return };
    if !serves() {
        return;
    }
    for with in [false, true] {
        let dir = folder();
        file(dir.path());
        let mut run = maybe_run(with, &[odd, "daemon", "file"]);
        let mut run = run.current_dir(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = run.stdout.take().unwrap();
        assert!(run.wait().unwrap().success());
        std::fs::write(dir.path().join("go"), "").unwrap();
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap(); // until the daemon ends
        assert_eq!(said, "right\ndaemon is right\nright\n", "with run: {with}");
    }
}

/// A folder that another user may enter, with the program and the file in it.
fn for_another_user(odd: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    file(dir.path());
    let program = dir.path().join("odd");
    std::fs::copy(odd, &program).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    (dir, program)
}

#[test]
fn other_users_programs_and_set_user_id_ones_run_as_without() {
    let Some(odd) = odd() else { return };
    if !is_root("run programs as another user") || !have("setpriv", "util-linux") {
        return;
    }
    let (dir, program) = for_another_user(odd);
    let program = program.to_str().unwrap();
    let another = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let out = |output: &Output| text(&output.stdout);
    let command = [&another[..], &[program, "chain1", "file"]].concat();
    same_with_and_without(dir.path(), &["env"], &command, out);
    // By another user, with root's rights again.
    std::fs::set_permissions(program, Permissions::from_mode(0o4755)).unwrap();
    same_with_and_without(dir.path(), &["env"], &command, out);
    same_with_and_without(dir.path(), &another, &[program, "chain1", "file"], out);
}

/// Behind chroot(1), where there is neither /proc nor the socket.
#[test]
fn a_program_behind_another_root_runs_as_without() {
    let Some(odd) = odd() else { return };
    if !is_root("chroot(2)") || !have("chroot", "coreutils") || !have("ldd", "libc-bin") {
        return;
    }
    let (dir, _) = for_another_user(odd);
    let needed = text(&Command::new("ldd").arg(odd).output().unwrap().stdout);
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = dir.path().join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(library, to).unwrap();
    }
    let out = |output: &Output| text(&output.stdout);
    let root = dir.path().to_str().unwrap();
    same_with_and_without(dir.path(), &["env"], &["chroot", root, "/odd", "chain1", "/file"], out);
}
