//! Tools that map files: ripgrep, git, fio, stress-ng.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{folder, text};
use crate::trial::{SMALL, Trial, clean, copy, have, noise, thorough};

/// Lines of text: a large file, and some in folders.
fn lines(dir: &Path) {
    let lines = |seed: u64, count: u64| {
        let mut all = String::new();
        for n in 0..count {
            let _ = writeln!(all, "line {n} of many, {}", (n + seed) * 7919 % 1_000_003);
        }
        all
    };
    std::fs::write(dir.join("large"), lines(0, 300_000)).unwrap();
    for folder in 0..4 {
        std::fs::create_dir(dir.join(format!("{folder}"))).unwrap();
        for file in 0..3 {
            let path = dir.join(format!("{folder}/{file}"));
            std::fs::write(path, lines(folder * 3 + file, 20_000 * (file + 1))).unwrap();
        }
    }
}

#[test]
fn ripgrep_finds_the_same() {
    if !have("rg", "ripgrep") {
        return;
    }
    for arguments in [
        &["rg", "--mmap", "-n", "99[0-9]*77$", "large"][..],
        &["rg", "--mmap", "-c", "--sort", "path", "[13]7$", "large", "0", "1", "2", "3"],
    ] {
        let Some(reports) = Trial::new(arguments).on(lines).run() else { return };
        for report in reports {
            assert_eq!(report.served("/large"), 1, "{:#}", report.0);
            assert!(arguments.len() == 5 || report.served("/0/2") == 1, "{:#}", report.0);
            report.did_work();
        }
    }
}

/// A bare repository with packs: some thousand objects, and blobs that do not compress.
fn repository(dir: &Path) {
    let git = |arguments: &[&str], input: &[u8]| {
        let mut git = Command::new("git");
        git.args(["-c", "pack.threads=1", "-c", "fastimport.unpackLimit=0"]).args(arguments).current_dir(dir);
        let mut git = clean(&mut git).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        git.stdin.take().unwrap().write_all(input).unwrap();
        assert!(git.wait().unwrap().success(), "git {arguments:?}");
    };
    git(&["init", "--quiet", "--bare", "--initial-branch=main", "r.git"], b"");
    // Two imports, each of which makes a pack.
    for import in 0..2 {
        let mut stream = Vec::new();
        for commit in 0..8 {
            let from = if import == 1 && commit == 0 { "from refs/heads/main^0\n" } else { "" };
            let at = 1_700_000_000 + import * 1000 + commit;
            write!(stream, "commit refs/heads/main\ncommitter A <a@example.com> {at} +0000\n").unwrap();
            write!(stream, "data 6\nsome\n\n{from}").unwrap();
            for file in 0..10 {
                let bytes = noise((import * 100 + commit * 10 + file) as u64, 48 << 10);
                write!(stream, "M 100644 inline noise/{import}-{commit}-{file}\ndata {}\n", bytes.len())
                    .unwrap();
                stream.extend([&bytes[..], b"\n"].concat());
                let text: String = (0..1500).map(|n| format!("{}\n", n * (file + 1) + commit % 3)).collect();
                write!(stream, "M 100644 inline text/{file}\ndata {}\n{text}\n", text.len()).unwrap();
            }
        }
        git(&["--git-dir=r.git", "fast-import", "--quiet", "--force"], &stream);
    }
}

#[test]
fn git_checks_and_packs_a_repository() {
    if !have("git", "git") {
        return;
    }
    const GIT: [&str; 4] = ["git", "-c", "pack.threads=1", "--git-dir=r.git"];
    // What is left of each differs in nothing but files that tell the time.
    let of_content = |name: &str| name.contains("objects/") && !name.contains("/info/");
    let made = folder();
    repository(made.path());
    for arguments in [
        &["fsck", "--full", "--strict"][..],
        &["cat-file", "--batch-all-objects", "--batch"],
        &["repack", "-a", "-d", "-f", "--depth=20", "--window=20"],
        &["gc", "--quiet", "--prune=now"],
    ] {
        let command = [&GIT[..], arguments].concat();
        let trial =
            Trial::new(&command).on(|dir| copy(made.path(), dir)).leaving(of_content).saying(|output| {
                format!("{}{}, {} bytes", text(&output.stderr), text(&output.stdout), output.stdout.len())
            });
        let Some(reports) = trial.tight().run() else { return };
        for report in reports {
            assert!(report.served(".pack") >= 2, "{arguments:?}: {:#}", report.0);
            report.is_the_kernels(".idx", SMALL);
            report.did_work();
        }
    }
}

/// Writes by maps and verifies what it reads by maps, in processes and in threads.
#[test]
fn fio_verifies_what_it_has_written_by_maps() {
    if !have("fio", "fio") {
        return;
    }
    const FIO: [&str; 6] =
        ["fio", "--ioengine=mmap", "--bs=4k", "--randseed=7", "--size=6m", "--output-format=terse"];
    const PATTERN: [&str; 3] = ["--verify=pattern", "--verify_pattern=%o", "--verify_state_save=0"];
    let write = [&FIO[..], &PATTERN, &["--name=f", "--filename=f", "--rw=randwrite"]].concat();
    let quiet = |output: &std::process::Output| text(&output.stderr);
    let Some(reports) = Trial::new(&write).saying(quiet).tight().run() else { return };
    for report in reports {
        assert!(report.served("/f") >= 1, "{:#}", report.0);
        report.did_work();
        assert!(report.written_back() >= 6 << 20, "{:#}", report.0);
    }
    let made = folder();
    let output = clean(Command::new("fio").args(&write[1..]).current_dir(made.path())).output();
    assert!(output.unwrap().status.success());
    for (rw, more) in [("randread", "--numjobs=2"), ("read", "--thread")] {
        let read = [&FIO[..], &PATTERN, &["--name=f", "--filename=f", "--rw", rw, more]].concat();
        let trial = Trial::new(&read).on(|dir| copy(made.path(), dir)).saying(quiet);
        let trial = if rw == "read" { trial.tight() } else { trial };
        for report in trial.run().into_iter().flatten() {
            assert!(report.served("/f") >= 1, "{:#}", report.0);
            report.did_work();
        }
    }
    let jobs = ["--name=j", "--numjobs=3", "--rw=randrw", "--verify=crc32c", "--verify_state_save=0"];
    for more in ["--group_reporting", "--thread"] {
        // Headers have the time in them.
        let both = [&FIO[..], &jobs, &[more]].concat();
        for report in Trial::new(&both).saying(quiet).leaving(|_| false).tight().run().into_iter().flatten() {
            assert!(report.served("/j.0.0") >= 1, "{:#}", report.0);
        }
    }
}

#[test]
fn stress_ng_finds_nothing_wrong() {
    if !have("stress-ng", "stress-ng") {
        return;
    }
    let more = if thorough() { "3" } else { "1" };
    for stressor in [
        &["--msync", "1", "--msync-bytes", "4M", "--msync-ops", "60"][..],
        &["--mmap", "1", "--mmap-file", "--mmap-bytes", "2M", "--mmap-ops", more],
        &[
            "--mmap",
            "1",
            "--mmap-file",
            "--mmap-async",
            "--mmap-mprotect",
            "--mmap-bytes",
            "2M",
            "--mmap-ops",
            more,
        ],
    ] {
        let command = [&["stress-ng", "--verify", "--temp-path", ".", "--seed", "7"], stressor].concat();
        let trial = Trial::new(&command).leaving(|_| false).saying(|output| {
            let all = text(&output.stdout) + &text(&output.stderr);
            assert!(all.contains("successful run completed") && !all.contains("fail:"), "{all}");
            String::new()
        });
        for report in trial.tight().run().into_iter().flatten() {
            match stressor[0] {
                "--msync" => assert!(report.served("(deleted)") >= 1, "{:#}", report.0),
                _ => report.is_the_kernels("(deleted)", "populated"),
            }
        }
    }
}

/// A file that is made anew while it is served elsewhere: a new file by the same name is another file.
#[test]
fn a_build_replaces_files_that_are_mapped() {
    if !have("rg", "ripgrep") {
        return;
    }
    let script = "for n in 1 2 3 4 5 6; do \
        rg --mmap -c 7$ large & \
        rg --mmap -c 7$ large > /dev/null & \
        wait; \
        tail -n +1000 large > next && mv next large; \
        rg --mmap -c 7$ large; \
        echo 77777 >> large; \
        rg --mmap -c 7$ large; \
    done";
    let Some(reports) = Trial::new(&["sh", "-c", script]).on(lines).run() else { return };
    for report in reports {
        assert!(report.served("/large") + report.served("(deleted)") >= 6 * 4, "{:#}", report.0);
    }
}
