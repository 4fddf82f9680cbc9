//! `recover` and `dump` from outside: what they say, what they change and what not, and their exit codes.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use mapwright::journal::place::Directory;
use mapwright::journal::{AtomicFile, Limits};
use mapwright::stores::{FileOptions, FileStore, Store};
use serde_json::Value;

const PAGE: usize = 4096;

struct Sample {
    folder: tempfile::TempDir,
}

impl Sample {
    /// A file of four pages whose program ended after two commits and a spill.
    fn crashed() -> Self {
        let sample = Self { folder: tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        fs::write(sample.path(), vec![1; 4 * PAGE]).unwrap();
        let file =
            Arc::new(FileStore::open(sample.path(), &FileOptions { write: true, direct: false }).unwrap());
        let place = Arc::new(Directory::of(file.as_fd(), &sample.path()).unwrap());
        let (atomic, _) = AtomicFile::open(place, file, Limits::default()).unwrap();
        for value in [2, 3] {
            let mut batch = atomic.begin();
            batch.put(PAGE as u64, &[value; PAGE]).unwrap();
            batch.commit().unwrap();
        }
        let mut batch = atomic.begin();
        batch.put(0, &[9; PAGE]).unwrap();
        batch.spill().unwrap();
        sample
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("data.mapwright-journal")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mapwright"))
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// JSON and exit code of a run.
    fn json(&self, arguments: &[&str]) -> (Value, Option<i32>) {
        let output = self.run(arguments);
        (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
    }

    fn state(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        (fs::read(self.path()).unwrap(), fs::read(self.journal()).ok())
    }
}

#[test]
fn the_first_run_is_a_dry_one_and_replay_does_what_it_said() {
    let sample = Sample::crashed();
    let before = sample.state();
    let (report, code) = sample.json(&["recover", "--json", "data"]);
    assert_eq!((code, &report["outcome"], &report["commits"]), (Some(0), &"found".into(), &2.into()));
    assert_eq!((&report["replayed_bytes"], &report["uncommitted_entries"]), (&4096.into(), &1.into()));
    assert_eq!(sample.state(), before, "a dry run changes nothing");
    let text = String::from_utf8(sample.run(&["recover", "data"]).stdout).unwrap();
    assert!(text.contains("would be written") && text.contains("--replay"), "{text}");
    let (report, code) = sample.json(&["recover", "--replay", "--json", "data"]);
    assert_eq!((code, &report["outcome"], &report["commits"]), (Some(0), &"replayed".into(), &2.into()));
    let (file, journal) = sample.state();
    assert_eq!((file.len(), file[0], file[PAGE], journal), (4 * PAGE, 1, 3, None));
    let (report, code) = sample.json(&["recover", "--replay", "--json", "data"]);
    assert_eq!((code, &report["outcome"]), (Some(0), &"none".into()));
}

#[test]
fn a_damaged_journal_is_refused_and_can_be_discarded() {
    let sample = Sample::crashed();
    let mut bytes = fs::read(sample.journal()).unwrap();
    bytes[3 * PAGE + 100] ^= 1;
    fs::write(sample.journal(), bytes).unwrap();
    let before = sample.state();
    for how in [&["recover", "--json", "data"][..], &["recover", "--replay", "--json", "data"]] {
        let (report, code) = sample.json(how);
        assert_eq!((code, &report["outcome"]), (Some(1), &"refused".into()));
        assert!(report["refused"].as_str().unwrap().contains("damaged at offset 12288"), "{report}");
        assert_eq!(sample.state(), before);
    }
    let (dumped, code) = sample.json(&["dump", "--journal", "--json", "data"]);
    assert_eq!((code, dumped["refused"].is_string()), (Some(1), true));
    let (report, code) = sample.json(&["recover", "--discard", "--json", "data"]);
    assert_eq!((code, &report["outcome"]), (Some(0), &"discarded".into()));
    assert_eq!(sample.state(), (before.0, None));
}

#[test]
fn a_copy_is_adopted_only_when_that_is_said() {
    let sample = Sample::crashed();
    fs::copy(sample.path(), sample.folder.path().join("copy")).unwrap();
    fs::rename(sample.folder.path().join("copy"), sample.path()).unwrap();
    let (report, code) = sample.json(&["recover", "--replay", "--json", "data"]);
    assert_eq!(code, Some(1));
    assert!(report["refused"].as_str().unwrap().contains("another file"), "{report}");
    let (report, code) = sample.json(&["recover", "--replay", "--adopt", "--json", "data"]);
    assert_eq!((code, &report["outcome"]), (Some(0), &"replayed".into()));
    assert_eq!(sample.state().0[PAGE], 3);
}

#[test]
fn a_dump_shows_every_entry_and_changes_nothing() {
    let sample = Sample::crashed();
    let before = sample.state();
    let (dumped, code) = sample.json(&["dump", "--journal", "--records", "--json", "data"]);
    assert_eq!(code, Some(0));
    let kinds: Vec<&str> =
        dumped["entries"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["commit", "commit", "part"]);
    let record = &dumped["entries"][1]["details"][0];
    assert_eq!(
        (&record["kind"], &record["at"], &record["bytes"]),
        (&"data".into(), &4096.into(), &4096.into())
    );
    assert_eq!((&dumped["header"]["commits"], &dumped["header"]["tail_entries"]), (&2.into(), &1.into()));
    let by_name = sample.json(&["dump", "--journal", "--records", "--json", "data.mapwright-journal"]);
    assert_eq!(by_name, (dumped, Some(0)));
    let text = String::from_utf8(sample.run(&["dump", "--journal", "data"]).stdout).unwrap();
    assert!(text.contains(" after 0: 1 records") && text.contains("2 commits"), "{text}");
    assert_eq!(sample.state(), before);
}

#[test]
fn a_dump_says_whether_the_file_is_in_use() {
    let sample = Sample::crashed();
    let in_use = |what| sample.json(&["dump", "--journal", "--json", what]).0["in_use"].clone();
    assert_eq!(in_use("data"), Value::Bool(false));
    let writer = FileStore::open(sample.path(), &FileOptions { write: true, direct: false }).unwrap();
    writer.lock().unwrap();
    assert_eq!((in_use("data"), in_use("data.mapwright-journal")), (Value::Bool(true), Value::Bool(true)));
    let output = sample.run(&["dump", "--journal", "data"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("in use by another program"));
    drop(writer);
    fs::remove_file(sample.path()).unwrap();
    let (alone, code) = sample.json(&["dump", "--journal", "--json", "data.mapwright-journal"]);
    assert_eq!((code, alone.get("in_use"), &alone["header"]["commits"]), (Some(0), None, &2.into()));
}

#[test]
fn a_dump_refuses_what_recovery_would_not_trust() {
    use std::os::unix::fs::PermissionsExt;
    let sample = Sample::crashed();
    fs::set_permissions(sample.path(), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(sample.journal(), fs::Permissions::from_mode(0o666)).unwrap();
    let (dumped, code) = sample.json(&["dump", "--journal", "--json", "data"]);
    assert_eq!((code, dumped["refused"].is_string()), (Some(1), true));
}

#[test]
fn a_file_in_use_is_left_alone() {
    let sample = Sample::crashed();
    let writer = FileStore::open(sample.path(), &FileOptions { write: true, direct: false }).unwrap();
    writer.lock().unwrap();
    let before = sample.state();
    for how in ["--replay", "--discard", "--json"] {
        let output = sample.run(&["recover", how, "data"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{how}");
        assert_eq!(sample.state(), before);
    }
}

#[test]
fn exit_codes_tell_failure_from_bad_usage() {
    let sample = Sample::crashed();
    for (arguments, code) in [
        (&["recover", "gone"][..], 1),
        (&["dump", "--journal", "gone"], 1),
        (&["recover"], 2),
        (&["dump", "data"], 2),
        (&["recover", "--replay", "--discard", "data"], 2),
        (&["recover", "--adopt", "--discard", "data"], 2),
        (&["recover", "--help"], 0),
        (&["dump", "--help"], 0),
    ] {
        assert_eq!(sample.run(arguments).status.code(), Some(code), "{arguments:?}");
    }
    sample.run(&["recover", "--replay", "data"]);
    let output = sample.run(&["dump", "--journal", "data"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no journal"));
}
