//! The `explain` command from outside: what it foretells of this test's own memory is what the touch then does.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering;

use common::{expect, folder, json, skip};
use mapwright::{Map, MapOptions, Strategy};
use mapwright_sys::table::Table;
use serde_json::Value;

const PAGE: usize = 4096;

/// What is said of an address of this process.
#[track_caller]
fn explain(address: usize) -> Value {
    let pid = std::process::id().to_string();
    json(Path::new("."), &["explain", &pid, &format!("{address:#x}")], 0)
}

#[track_caller]
fn effects(found: &Value) -> [&str; 3] {
    ["read", "write", "execute"].map(|access| found["touch"][access]["effect"].as_str().unwrap())
}

/// Minor and major faults of this thread (proc_pid_stat(5), fields 10 and 12).
fn faults() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[7].parse().unwrap(), fields[9].parse().unwrap())
}

fn address_of<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

#[test]
fn anonymous_memory_is_absent_then_there() {
    let table = Table::new(1 << 24).unwrap();
    let word = &table[1 << 23];
    let before = explain(address_of(word));
    assert_eq!(effects(&before), ["minor-fault", "minor-fault", "sigsegv"], "{before}");
    assert_eq!(before["page"]["present"], false);
    assert!(before["file"].is_null());
    let (minor, _) = faults();
    word.store(1, Ordering::Relaxed);
    assert!(faults().0 > minor);
    let after = explain(address_of(word));
    assert_eq!(effects(&after), ["no-fault", "no-fault", "sigsegv"], "{after}");
    assert_eq!(after["page"]["present"], true);
    assert_eq!(after["page"]["exclusive"], true);
    assert_eq!(after["page"]["file"], false);
}

#[test]
fn a_zero_page_is_copied_when_it_is_written() {
    let table = Table::new(1 << 24).unwrap();
    let word = &table[1 << 23];
    assert_eq!(word.load(Ordering::Relaxed), 0);
    let found = explain(address_of(word));
    assert_eq!(effects(&found)[1], "copy-on-write", "{found}");
    let (minor, _) = faults();
    word.store(1, Ordering::Relaxed);
    assert!(faults().0 > minor);
    assert_eq!(effects(&explain(address_of(word)))[1], "no-fault");
}

#[test]
fn a_file_comes_from_the_disk_or_from_the_page_cache() {
    let dir = folder();
    let path = dir.path().join("data");
    fs::write(&path, vec![1; 64 * PAGE + 10]).unwrap();
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let at = address_of(&map[40 * PAGE + 7]);

    let cold = explain(at);
    if cold["file"]["cached"] == true {
        return skip("the build folder is on a file system whose files stay in memory");
    }
    assert_eq!(cold["file"]["offset"], 40 * PAGE + 7);
    assert_eq!(cold["file"]["size"], 64 * PAGE + 10);
    assert_eq!(cold["file"]["path"], path.canonicalize().unwrap().to_str().unwrap());
    assert_eq!(effects(&cold), ["major-fault", "sigsegv", "sigsegv"], "{cold}");
    let (_, major) = faults();
    assert_eq!(map[40 * PAGE + 7], 1);
    assert!(faults().1 > major);
    assert_eq!(effects(&explain(at))[0], "no-fault");

    drop(map);
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    let at = address_of(&map[40 * PAGE + 7]);
    let warm = explain(at);
    assert_eq!(warm["file"]["cached"], true);
    assert_eq!(effects(&warm)[0], "minor-fault", "{warm}");
    let (minor, major) = faults();
    assert_eq!(map[40 * PAGE + 7], 1);
    assert!(faults().0 > minor && faults().1 == major);

    // Without a name it is still the same file, for whoever may see it.
    fs::remove_file(&path).unwrap();
    let nameless = explain(at);
    if rustix::process::geteuid().is_root() {
        assert_eq!(nameless["file"]["cached"], true, "{nameless}");
    } else {
        assert!(nameless["file"]["unknown_because"].is_string(), "{nameless}");
    }
}

#[test]
fn behind_the_end_of_the_file_is_sigbus() {
    let dir = folder();
    let path = dir.path().join("data");
    fs::write(&path, vec![1; 64 * PAGE]).unwrap();
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    let at = address_of(&map[40 * PAGE]);
    File::options().write(true).open(&path).unwrap().set_len(40 * PAGE as u64).unwrap();
    let found = explain(at);
    assert_eq!(found["file"]["past_end"], true);
    assert_eq!(effects(&found)[0], "sigbus", "{found}");
    // The guard of the map turns that very signal into an error.
    assert!(map.checked(|bytes| bytes[40 * PAGE]).is_err());
    assert_eq!(effects(&explain(at - 1))[0], "minor-fault");
}

#[test]
fn memory_of_a_pager_is_known() {
    let dir = folder();
    let path = dir.path().join("data");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let map = Map::open(&path).unwrap();
    if map.strategy().strategy() != Strategy::Pager {
        return skip(map.strategy().reason());
    }
    let found = explain(address_of(&map[500_000]));
    assert_eq!(effects(&found)[0], "userfaultfd", "{found}");
    assert_eq!(map[500_000], 1);
    assert_eq!(effects(&explain(address_of(&map[500_000])))[0], "no-fault");
}

#[test]
fn what_is_not_mapped_or_not_allowed_is_sigsegv() {
    let nothing = explain(8);
    assert!(nothing["mapping"].is_null());
    assert_eq!(effects(&nothing), ["sigsegv"; 3]);
    assert!(nothing["above"]["start"].is_u64());
    let code = explain(explain as *const () as usize);
    let [read, write, execute] = effects(&code);
    assert_eq!([read, write, execute], ["no-fault", "sigsegv", "no-fault"], "{code}");
    assert!(code["touch"]["write"]["why"].as_str().unwrap().contains("r-xp"));
}

#[test]
fn it_speaks_to_people_and_refuses_nonsense() {
    let here = Path::new(".");
    let pid = std::process::id().to_string();
    let local = 5_u8;
    let (said, _) = expect(here, &["explain", &pid, &format!("{:x}", address_of(&local))], 0);
    for part in
        ["process", "mapping", "page table", "present", "read", "no fault", "write", "execute", "SIGSEGV"]
    {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    for bad in [
        &["explain"][..],
        &["explain", "self"],
        &["explain", "x", "0"],
        &["explain", "self", "12x"],
        &["explain", "self", ""],
    ] {
        expect(here, bad, 2);
    }
    let (_, why) = expect(here, &["explain", "2147483647", "0"], 1);
    assert!(why.contains("no process"), "{why}");
    assert!(expect(here, &["explain", "--help"], 0).0.contains("Examples:"));
}
