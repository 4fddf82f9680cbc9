//! The `cache` command from outside: what it shows is what mincore(2) and fincore say, what it does to the page cache can
//! be seen there, and what it can't do it names.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{expect, folder, json, mapwright, not_root, other_tool, run, skip, text};
use mapwright_sys::page_cache;
use serde_json::Value;
use tempfile::TempDir;

const PAGE: u64 = 4096;

/// A folder with a file `data` of so many pages that is on the disk and not in the page cache; none on a file system that
/// lives in memory.
fn cold(pages: u64) -> Option<TempDir> {
    let dir = folder();
    let path = dir.path().join("data");
    fs::write(&path, vec![7; (pages * PAGE) as usize]).unwrap();
    chill(&path);
    if resident(&path).iter().any(|page| *page) {
        skip("the build folder is on a file system whose files stay in memory");
        return None;
    }
    Some(dir)
}

fn chill(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Reads pages without the kernel's read-ahead.
fn warm(path: &Path, pages: &[u64]) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    for page in pages {
        file.read_exact_at(&mut [0; PAGE as usize], page * PAGE).unwrap();
    }
}

fn resident(path: &Path) -> Vec<bool> {
    let file = File::open(path).unwrap();
    let mut pages = vec![0; file.metadata().unwrap().len().div_ceil(PAGE) as usize];
    page_cache::mincore(file.as_fd(), 0, &mut pages).unwrap();
    pages.iter().map(|page| page & 1 == 1).collect()
}

/// The ranges in JSON as flags of pages.
fn pages_of(ranges: &Value, pages: usize) -> Vec<bool> {
    let mut flags = vec![false; pages];
    for range in ranges.as_array().unwrap() {
        let at = |side: &str| (range[side].as_u64().unwrap() / PAGE) as usize;
        flags[at("start")..at("end")].fill(true);
    }
    flags
}

#[test]
fn what_is_shown_is_what_mincore_says() {
    let Some(dir) = cold(40_000) else { return };
    let path = dir.path().join("data");
    warm(&path, &[0, 1, 2, 100, 16_383, 16_384, 39_999]);
    let truth = resident(&path);
    let count = truth.iter().filter(|page| **page).count() as u64;
    assert!(count >= 7);
    for method in ["auto", "mincore"] {
        let found = json(dir.path(), &["cache", "data", "--ranges", "--method", method], 0);
        let row = &found["files"][0];
        assert_eq!(row["path"], "data");
        assert_eq!(row["size"], 40_000 * PAGE);
        assert_eq!(row["total_pages"], 40_000);
        assert_eq!(row["cached_pages"], count);
        assert_eq!(row["cached_bytes"], count * PAGE);
        assert_eq!(pages_of(&row["ranges"], truth.len()), truth, "{method}");
        assert_eq!(found["total"]["cached_pages"], count);
        assert_eq!(row["dirty_pages"].is_null(), method == "mincore");
    }
    let part = json(dir.path(), &["cache", "data", "--range", "4096..409600"], 0);
    assert_eq!(part["files"][0]["total_pages"], 99);
    let expected = truth[1..100].iter().filter(|page| **page).count() as u64;
    assert_eq!(part["files"][0]["cached_pages"], expected);
    if let Some(other) = other_tool(dir.path(), "fincore", &["-n", "-b", "-o", "PAGES,SIZE,RES", "data"]) {
        let ours = expect(dir.path(), &["cache", "-n", "-b", "--raw", "-o", "pages,size,res", "data"], 0).0;
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&ours), words(&other));
    }
}

/// Old kernels have no cachestat(2), seccomp profiles refuse it, and some file systems can't be mapped for mincore(2).
#[test]
fn either_system_call_will_do() {
    const SYS_CACHESTAT: libc::c_long = 451;
    let Some(dir) = cold(20_000) else { return };
    let path = dir.path().join("data");
    warm(&path, &[0, 1, 7, 8, 9, 16_383, 19_999]);
    let truth = resident(&path);
    let has_cachestat = page_cache::cachestat(File::open(&path).unwrap().as_fd(), 0..1).is_ok();
    let refusals = [
        (SYS_CACHESTAT, libc::ENOSYS, true),
        (SYS_CACHESTAT, libc::EPERM, true),
        (libc::SYS_mincore, libc::ENOSYS, has_cachestat),
    ];
    for (call, errno, is_told) in refusals {
        let dir = dir.path().to_owned();
        // The filter holds for the thread and what it starts.
        let thread = std::thread::spawn(move || {
            mapwright_sys::testing::refuse_system_calls(&[call], errno)
                .map(|()| run(&dir, &["cache", "data", "--ranges", "--json"]))
        });
        let output = match thread.join().unwrap() {
            Ok(output) => output,
            Err(error) => return skip(&format!("no seccomp here: {error}")),
        };
        assert_eq!(output.status.success(), is_told, "{call} {errno}: {}", text(&output.stderr));
        if is_told {
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(pages_of(&found["files"][0]["ranges"], truth.len()), truth, "{call} {errno}");
            assert_eq!(found["files"][0]["dirty_pages"].is_null(), call == SYS_CACHESTAT || !has_cachestat);
        }
    }
}

#[test]
fn a_bar_shows_where() {
    let Some(dir) = cold(64) else { return };
    warm(&dir.path().join("data"), &(0..16).chain([40]).collect::<Vec<_>>());
    for method in ["auto", "mincore"] {
        let bar = ["cache", "data", "-n", "-o", "bar", "--bar-width", "4", "--ascii", "--method", method];
        assert_eq!(expect(dir.path(), &bar, 0).0, "[# . ]\n");
    }
    assert_eq!(
        expect(dir.path(), &["cache", "data", "-n", "-o", "bar", "--bar-width", "4"], 0).0,
        "[█ ░ ]\n"
    );
}

#[test]
fn a_sparse_tebibyte_is_no_trouble() {
    let dir = folder();
    let file = File::create(dir.path().join("sparse")).unwrap();
    if let Err(error) = file.set_len(1 << 40) {
        return skip(&format!("no sparse file of 1 TiB: {error}"));
    }
    file.write_all_at(b"x", 123 << 30).unwrap();
    if page_cache::cachestat(file.as_fd(), 0..1).is_err() {
        return skip("cachestat(2) does not answer here");
    }
    let started = Instant::now();
    let found = json(dir.path(), &["cache", "sparse", "--ranges"], 0);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(found["files"][0]["total_pages"], 1 << 28);
    assert_eq!(found["files"][0]["ranges"][0]["start"], 123_u64 << 30);
    let (_, why) = expect(dir.path(), &["cache", "--touch", "sparse"], 1);
    assert!(why.contains("memory available") && why.contains("--force"), "{why}");
}

/// There cachestat(2) answers for an inode that has no pages.
#[test]
fn overlayfs_is_seen_through() {
    if !rustix::process::geteuid().is_root() {
        return not_root("mount overlayfs");
    }
    let dir = folder();
    for name in ["lower", "upper", "work", "top"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("lower/data"), vec![1; 10 * PAGE as usize]).unwrap();
    // In a mount namespace of its own, which takes the mount away with it.
    let script = format!(
        "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work top && cat top/data > seen && '{}' cache --json top/data",
        env!("CARGO_BIN_EXE_mapwright")
    );
    let shell = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(dir.path())
        .output();
    match shell {
        Ok(output) if output.status.success() => {
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(found["files"][0]["cached_pages"], 10);
        }
        other => skip(&format!("no overlayfs can be mounted here: {other:?}")),
    }
}

#[test]
fn touch_reads_what_was_asked_for_and_nothing_else() {
    let Some(dir) = cold(3000) else { return };
    let path = dir.path().join("data");
    expect(dir.path(), &["cache", "--touch", "data", "--range", "409600..4194304"], 0);
    let expected: Vec<bool> = (0..3000).map(|page| (100..1024).contains(&page)).collect();
    assert_eq!(resident(&path), expected);
    let found = json(dir.path(), &["cache", "--touch", "data"], 0);
    assert_eq!(found["files"][0]["cached_pages"], 3000);
    assert!(resident(&path).iter().all(|page| *page));
}

#[test]
fn evict_drops_what_is_clean_and_names_what_stays() {
    let Some(dir) = cold(100) else { return };
    let path = dir.path().join("data");
    warm(&path, &[1, 2, 50]);
    expect(dir.path(), &["cache", "--evict", "data", "--range", "0..40960"], 0);
    assert_eq!(resident(&path).iter().filter(|page| **page).count(), 1);
    expect(dir.path(), &["cache", "--evict", "data"], 0);
    assert!(!resident(&path)[50]);
    let locked = page_cache::LockedPages::new(File::open(&path).unwrap().as_fd(), 3, 2).unwrap();
    let (_, why) = expect(dir.path(), &["cache", "--evict", "data"], 1);
    assert!(why.contains("data: 2 pages stayed: they are mapped by a program, locked"), "{why}");
    drop(locked);
    File::options().write(true).open(&path).unwrap().write_all_at(&[1; 3 * 4096], 0).unwrap();
    let (_, why) = expect(dir.path(), &["cache", "--evict", "data"], 1);
    assert!(why.contains("pages stayed") && why.contains("--sync"), "{why}");
    expect(dir.path(), &["cache", "--evict", "--sync", "data"], 0);
    assert!(resident(&path).iter().all(|page| !page));
    assert_eq!(fs::read(&path).unwrap()[..3 * 4096], [1; 3 * 4096]);
}

#[test]
fn folders_are_walked_and_filtered() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("top/inner")).unwrap();
    fs::create_dir_all(at("outside")).unwrap();
    for (name, len) in
        [("top/a.db", 5000), ("top/inner/b.db", 9000), ("top/inner/c.log", 100), ("outside/d.db", 10)]
    {
        fs::write(at(name), vec![1; len]).unwrap();
    }
    fs::hard_link(at("top/a.db"), at("top/inner/again.db")).unwrap();
    symlink("../outside", at("top/link")).unwrap();
    symlink("..", at("top/inner/loop")).unwrap();
    let names = |arguments: &[&str]| {
        let arguments: Vec<&str> =
            ["cache", "-n", "--raw", "-o", "file"].iter().chain(arguments).copied().collect();
        expect(dir.path(), &arguments, 0).0.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["top"]), ["top/a.db", "top/inner/b.db", "top/inner/c.log"]);
    assert_eq!(names(&["top", "top/a.db", "."]).len(), 4);
    assert_eq!(names(&["top", "--count-links"]).len(), 4);
    assert_eq!(names(&["top", "--include", "*.db"]), ["top/a.db", "top/inner/b.db"]);
    assert_eq!(
        names(&["top", "--include", "*/inner/*"]),
        ["top/inner/again.db", "top/inner/b.db", "top/inner/c.log"]
    );
    assert_eq!(names(&["top", "--exclude", "inner"]), ["top/a.db"]);
    assert_eq!(names(&["top", "--min-size", "5000", "--max-size", "8K"]), ["top/a.db"]);
    assert_eq!(names(&["top", "--one-file-system"]).len(), 3);
    assert_eq!(names(&["top", "--sort", "size"])[0], "top/inner/b.db");
    // The loop is named and does not hang.
    let (stdout, stderr) = expect(dir.path(), &["cache", "-L", "-n", "--raw", "-o", "file", "top"], 1);
    assert!(stdout.contains("top/link/d.db"), "{stdout}");
    assert!(stderr.contains("loop"), "{stderr}");
    let total = json(dir.path(), &["cache", "top", "--total-only"], 0);
    assert_eq!(total["total"]["size"], 14_100);
    assert_eq!(total["files"].as_array().unwrap().len(), 0);
}

#[test]
fn names_may_be_listed_and_may_be_odd() {
    let dir = folder();
    let odd = OsStr::from_bytes(b"a b\n\x1b[2J\xff");
    fs::write(dir.path().join(odd), b"x").unwrap();
    fs::write(dir.path().join("plain"), b"x").unwrap();
    let mut child = mapwright(dir.path(), &["cache", "--files-from", "-", "-0", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a b\n\x1b[2J\xff\0plain\0").unwrap();
    let output = child.wait_with_output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes: Vec<u8> = serde_json::from_value(found["files"][0]["path_bytes"].clone()).unwrap();
    assert_eq!(bytes, odd.as_bytes());
    assert!(found["files"][1]["path_bytes"].is_null());
    let raw = expect(dir.path(), &["cache", "-n", "--raw", "-o", "file", "."], 0).0;
    assert_eq!(raw, "./a\\x20b\\x0a\\x1b[2J\\xff\n./plain\n");
}

#[test]
fn a_dump_brings_back_what_was_there() {
    let Some(dir) = cold(2000) else { return };
    let path = dir.path().join("data");
    warm(&path, &[0, 1, 7, 1000, 1999]);
    let before = resident(&path);
    expect(dir.path(), &["cache", "--dump", "dump.txt", "data"], 0);
    chill(&path);
    expect(dir.path(), &["cache", "--restore", "dump.txt"], 0);
    assert_eq!(resident(&path), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was left beside the dump");

    // A shorter file is restored as far as it goes, and that is said.
    File::options().write(true).open(&path).unwrap().set_len(500 * PAGE).unwrap();
    chill(&path);
    let (_, why) = expect(dir.path(), &["cache", "--restore", "dump.txt"], 0);
    assert!(why.contains("it had 8192000 bytes"), "{why}");
    assert_eq!(resident(&path), before[..500]);

    // One that is gone is a failure.
    fs::remove_file(&path).unwrap();
    let (_, why) = expect(dir.path(), &["cache", "--restore", "dump.txt"], 1);
    assert!(why.contains("No such file"), "{why}");

    // A dump of another version, or cut off, is refused whole.
    let dump = fs::read_to_string(dir.path().join("dump.txt")).unwrap();
    for (bad, why) in
        [(dump.replacen('1', "2", 1), "version"), (dump[..dump.len() - 5].to_owned(), "last line")]
    {
        fs::write(dir.path().join("bad.txt"), bad).unwrap();
        let (_, said) = expect(dir.path(), &["cache", "--restore", "bad.txt"], 1);
        assert!(said.contains(why) && said.contains("nothing was restored"), "{said}");
    }
}

#[test]
fn lock_holds_pages_until_a_signal() {
    let Some(dir) = cold(256) else { return };
    let mut child =
        mapwright(dir.path(), &["cache", "--lock", "data"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said =
        lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("locked"))).unwrap().unwrap();
    assert!(said.contains("1 MiB"), "{said}");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let locked = status.lines().find(|line| line.starts_with("VmLck")).unwrap();
    assert_eq!(locked.split_whitespace().nth(1), Some("1024"));
    assert!(resident(&dir.path().join("data")).iter().all(|page| *page));
    assert!(child.try_wait().unwrap().is_none());
    interrupt(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // All or nothing.
    let (_, why) = expect(dir.path(), &["cache", "--lock", "data", "missing"], 1);
    assert!(why.contains("nothing is"), "{why}");
}

fn interrupt(child: &std::process::Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn watch_looks_again_until_told_to_stop() {
    let Some(dir) = cold(10) else { return };
    let lines = expect(dir.path(), &["cache", "-w", "0.05", "--count", "3", "-o", "pages,file", "data"], 0).0;
    let words: Vec<Vec<&str>> = lines.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words.len(), 4, "{lines}");
    assert_eq!(words[0][1..], ["PAGES", "FILE"]);
    assert!(words[1..].iter().all(|line| line[1..] == ["0", "data"]), "{lines}");

    let mut child = mapwright(dir.path(), &["cache", "-w", "0.05", "--json", "data"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut pages = || {
        serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["total"]["cached_pages"]
            .as_u64()
    };
    assert_eq!(pages(), Some(0));
    warm(&dir.path().join("data"), &[3]);
    while pages() != Some(1) {}
    interrupt(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn failures_are_named_and_the_others_go_on() {
    let dir = folder();
    fs::write(dir.path().join("data"), b"x").unwrap();
    let (stdout, stderr) = expect(dir.path(), &["cache", "missing", "/dev/null", "data"], 1);
    assert!(
        stderr.contains("missing: No such file") && stderr.contains("/dev/null: not a regular file"),
        "{stderr}"
    );
    assert!(stdout.contains("data"));
    for bad in [
        &["cache"][..],
        &["cache", "--touch", "--evict", "data"],
        &["cache", "--restore", "x", "data"],
        &["cache", "--columns", "nonsense", "data"],
        &["cache", "--range", "5..5", "data"],
        &["cache", "--sync", "data"],
        &["cache", "--include", "[", "data"],
        &["cache", "--watch", "0", "data"],
    ] {
        let (_, why) = expect(dir.path(), bad, 2);
        assert!(why.contains("Usage") || why.contains("--help"), "{why}");
    }
    let (help, _) = expect(dir.path(), &["cache", "--help"], 0);
    assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
}

#[test]
fn another_users_file_is_said_to_be_hidden() {
    let dir = TempDir::new().unwrap();
    if !rustix::process::geteuid().is_root() {
        return not_root("become another user");
    }
    let path = dir.path().join("data");
    fs::write(&path, vec![1; 8192]).unwrap();
    let binary = dir.path().join("mapwright");
    fs::copy(env!("CARGO_BIN_EXE_mapwright"), &binary).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&binary)
        .args(["cache", "--method", "mincore", "data"])
        .current_dir(dir.path())
        .uid(65_534)
        .gid(65_534)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return skip(&format!("another user can't run the binary: {error}")),
    };
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let why = text(&output.stderr);
    assert!(why.contains("only its owner") && why.contains("root"), "{why}");
    assert!(run(dir.path(), &["cache", "--method", "mincore", "data"]).status.success());
}
