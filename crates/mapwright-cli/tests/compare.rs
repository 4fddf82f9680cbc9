//! The `compare` command from outside: its JSON, its exit codes, and that it leaves nothing behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const ROW_FIELDS: [&str; 17] = [
    "pattern",
    "method",
    "limit_bytes",
    "ops",
    "bytes",
    "seconds",
    "cpu_seconds",
    "ops_per_second",
    "p50_us",
    "p99_us",
    "peak_rss_bytes",
    "checksum",
    "threads",
    "rounds",
    "calls",
    "guarantee",
    "enforced",
];

fn mapwright(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mapwright"));
    command.args(arguments).current_dir(dir).env_remove("TMPDIR").stdin(Stdio::null());
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    mapwright(dir, arguments).output().unwrap()
}

/// A directory with a file of 16 MiB and `tail` bytes, and the checksum of its bytes.
fn file(tail: usize) -> (TempDir, u64) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes: Vec<u8> =
        (0..(16 << 20) + tail as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    fs::write(dir.path().join("data"), &bytes).unwrap();
    (dir, words(&bytes))
}

/// Too simple to be wrong.
fn words(bytes: &[u8]) -> u64 {
    bytes.iter().enumerate().fold(0, |sum, (i, byte)| sum.wrapping_add(u64::from(*byte) << (8 * (i % 8))))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Memory groups of a process that should be gone, wherever this test's own group is.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("mapwright-compare-{pid}-");
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // Symbolic links to co-mounted controllers are not followed.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    found.push(entry.path());
                }
                todo.push(entry.path());
            }
        }
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_pattern_gives_rows_with_equal_checksums() {
    let (dir, whole) = file(1001);
    let before = fs::read(dir.path().join("data")).unwrap();
    let arguments = [
        "compare",
        "data",
        "--write",
        "--limit",
        "4M",
        "--ops",
        "60",
        "--rounds",
        "2",
        "--threads",
        "1,3",
        "--json",
        "out.json",
        "--svg",
        "out.svg",
    ];
    let output = run(dir.path(), &arguments);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let report = json(&dir.path().join("out.json"));
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        for field in ROW_FIELDS {
            assert!(!row[field].is_null(), "{field} is missing in {row}");
        }
        assert_eq!(row["limit_bytes"], 4 << 20);
        assert!(row["peak_rss_bytes"].as_u64().unwrap() > 0);
    }
    for (pattern, methods) in [
        ("sequential", &["read", "pread", "mmap", "mmap-advised"][..]),
        ("random", &["read", "pread", "mmap", "mmap-advised"]),
        ("zipf", &["read", "pread", "mmap", "mmap-advised"]),
        ("update", &["pwrite", "mmap", "mmap-advised"]),
    ] {
        let of: Vec<&Value> = rows.iter().filter(|row| row["pattern"] == pattern).collect();
        for method in methods {
            assert!(of.iter().any(|row| row["method"] == *method), "no {method} for {pattern}");
        }
        assert!(of.iter().all(|row| row["checksum"] == of[0]["checksum"]), "{pattern}");
        let expected = match pattern {
            "sequential" => whole,
            // Every operation adds 1 to one word.
            "update" => whole.wrapping_add(60),
            _ => continue,
        };
        assert_eq!(of[0]["checksum"], format!("{expected:016x}"), "{pattern}");
    }
    assert!(rows.iter().any(|row| row["threads"] == 3 && row["pattern"] == "random"));
    assert!(report["recommendation"].as_str().unwrap().contains("random"));
    assert!(report["machine"]["kernel"].as_str().unwrap().starts_with("Linux"));
    let svg = fs::read_to_string(dir.path().join("out.svg")).unwrap();
    assert!(svg.contains("mmap-advised"));
    let ran = |method: &str| rows.iter().any(|row| row["method"] == method);
    assert_eq!(svg.contains("mapwright (default)"), ran("mapwright"));
    assert_eq!(
        text(&output.stdout).contains("\nmapwright-in-thread  "),
        ran("mapwright-in-thread"),
        "legend"
    );
    assert!(text(&output.stdout).contains("vs advised"));
    assert_eq!(fs::read(dir.path().join("data")).unwrap(), before, "the file itself is not changed");
    assert_eq!(names(dir.path()), ["data", "out.json", "out.svg"]);
}

#[test]
fn json_on_stdout_is_only_json() {
    let (dir, _) = file(0);
    let arguments = [
        "compare",
        "data",
        "--patterns",
        "random",
        "--methods",
        "pread,mmap-advised",
        "--ops",
        "20",
        "--json",
        "-",
    ];
    let output = run(dir.path(), &[&arguments[..], &["--rounds", "1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
    assert!(text(&output.stderr).contains("mmap-advised"));
}

#[test]
fn a_sample_is_made_and_removed() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let arguments = [
        "compare",
        "--sample-size",
        "2M",
        "--rounds",
        "1",
        "--ops",
        "20",
        "--patterns",
        "zipf",
        "--methods",
        "read",
    ];
    let output = run(dir.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("a sample of pseudo-random bytes"));
    let lines = text(&output.stderr);
    let expected = [
        "mapwright compare: making a sample of 2 MiB",
        "mapwright compare: 0 of 2 rounds done; warm-up: zipf through read",
    ];
    assert_eq!(lines.lines().take(2).collect::<Vec<_>>(), expected, "progress without a terminal");
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[test]
fn tiny_files_and_odd_tails_work() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for len in [8usize, 4095, 4097, 4103] {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        fs::write(dir.path().join("data"), &bytes).unwrap();
        let arguments =
            ["compare", "data", "--write", "--rounds", "1", "--ops", "9", "--json", "-", "--quiet"];
        let output = run(dir.path(), &arguments);
        assert!(output.status.success(), "{len}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "--quiet: {}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = &report["rows"][0];
        assert_eq!(row["bytes"], len);
        assert_eq!(row["checksum"], format!("{:016x}", words(&bytes)), "{len}");
    }
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let makes_groups = mapwright_measure::cgroup::find().is_ok();
    for signal in ["INT", "TERM"] {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let arguments = ["compare", "--sample-size", "16M", "--write", "--ops", "100000", "--rounds", "1000"];
        let stderr = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = mapwright(dir.path(), &arguments);
        command.stdout(Stdio::piped()).stderr(stderr.reopen().unwrap());
        let child = command.spawn().unwrap();
        let pid = child.id();
        // In the middle: the sample and the copy are there, rounds have begun, and where groups can be made, one is.
        let is_in_the_middle = || {
            names(dir.path()).len() == 2
                && fs::read_to_string(stderr.path()).unwrap().contains("rounds done; warm-up")
                && !(makes_groups && groups_of(pid).is_empty())
        };
        let start = Instant::now();
        let mut seen = false;
        while !seen && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
            seen = is_in_the_middle();
        }
        let killed = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        let stderr = fs::read_to_string(stderr.path()).unwrap();
        assert!(seen, "not in the middle after a minute: {stderr}");
        assert_eq!(output.status.code(), Some(130), "{:?} {stderr}", output.status.signal());
        assert!(stderr.contains("interrupted"), "{stderr}");
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
        assert!(groups_of(pid).is_empty(), "{:?}", groups_of(pid));
    }
}

#[test]
fn failures_are_named_and_end_with_1() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    for (name, expected) in [("empty", "is empty"), (".", "is a directory"), ("missing", "No such file")] {
        let output = run(dir.path(), &["compare", name]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(text(&output.stderr).contains(expected), "{name}: {}", text(&output.stderr));
    }
    fs::write(dir.path().join("data"), [1; 5000]).unwrap();
    let output =
        run(dir.path(), &["compare", "data", "--json", "no/such/place", "--rounds", "1", "--ops", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(dir.path()), ["data", "empty"]);
}

#[test]
fn bad_usage_ends_with_2() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for arguments in [
        &["compare", "--limit", "lots"][..],
        &["compare", "--methods", "telepathy"],
        &["compare", "--patterns", "update"],
        &["compare", "--threads", "0"],
        &["compare", "--rounds", "0"],
        &["compare", "--methods", "pwrite"],
        &["frobnicate"],
    ] {
        let output = run(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn doctor_speaks_text_and_json() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = run(dir.path(), &["doctor"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("strategy Auto"));
    let output = run(dir.path(), &["doctor", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["strategy"]["auto"].is_string());
    assert!(json["findings"].as_array().unwrap().iter().any(|finding| finding["name"] == "memory"));
}

#[test]
fn the_patterns_are_recorded_as_a_trace() {
    let (dir, _) = file(5);
    let arguments = [
        "compare",
        "data",
        "--patterns",
        "sequential,zipf",
        "--methods",
        "pread",
        "--rounds",
        "1",
        "--ops",
        "3000",
        "--sequential-bytes",
        "4M",
        "--record",
        "out.trace",
        "-q",
    ];
    let output = run(dir.path(), &arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("not available here") {
        eprintln!("left out: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}");
    let trace = mapwright::engine::record::Trace::read(&dir.path().join("out.trace")).unwrap();
    let pages: Vec<u64> = trace.references.iter().map(|reference| reference.page).collect();
    assert_eq!(pages[..1024], (0..1024).collect::<Vec<u64>>());
    // Of the 3000 zipf accesses, those that the few pages of the recording pager hit are missing.
    assert!((1500..3000).contains(&(pages.len() - 1024)), "{}", pages.len());
    assert!(pages.iter().all(|page| *page <= 4096));
}
