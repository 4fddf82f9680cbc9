//! The `map` command from outside: against /proc, against pmap where there is one, and its errors.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{expect, folder, json, not_root, other_tool, text};
use serde_json::Value;

/// A process that sleeps: its mappings stay as they are.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let sleeper = Self(child);
        // Mapped to the end: it sleeps.
        while !fs::read_to_string(format!("/proc/{}/wchan", sleeper.0.id()))
            .is_ok_and(|at| at.contains("nanosleep"))
            && !fs::read_to_string(format!("/proc/{}/stat", sleeper.0.id())).unwrap().contains(") S ")
        {
            std::thread::yield_now();
        }
        sleeper
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn here() -> &'static Path {
    Path::new(".")
}

/// Each line of the kernel's file, too simple to be wrong.
fn smaps(pid: &str) -> Vec<(String, Vec<(String, u64)>)> {
    let mut areas: Vec<(String, Vec<(String, u64)>)> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        match first.strip_suffix(':') {
            None => areas.push((first.to_owned(), Vec::new())),
            Some("VmFlags") => {}
            Some(name) => {
                let number: u64 = words.next().unwrap().parse().unwrap();
                let unit = if words.next().is_some() { 1024 } else { 1 };
                areas.last_mut().unwrap().1.push((name.to_owned(), number * unit));
            }
        }
    }
    areas
}

#[test]
fn every_field_of_every_mapping_is_shown() {
    let sleeper = Sleeper::new();
    let truth = smaps(&sleeper.pid());
    let found = json(here(), &["map", &sleeper.pid()], 0);
    let process = &found["processes"][0];
    assert_eq!(process["pid"].to_string(), sleeper.pid());
    assert_eq!(process["command"], "sleep 1000");
    let mappings = process["mappings"].as_array().unwrap();
    assert_eq!(mappings.len(), truth.len());
    for (mapping, (addresses, fields)) in mappings.iter().zip(&truth) {
        let range =
            format!("{:08x}-{:08x}", mapping["start"].as_u64().unwrap(), mapping["end"].as_u64().unwrap());
        assert_eq!(&range, addresses);
        for (name, value) in fields {
            // Referenced is cleared by whoever likes, and pages of shared libraries come and go in other processes.
            if !["Referenced", "Pss", "Pss_Dirty"].contains(&name.as_str()) && !name.contains("_Clean") {
                assert_eq!(mapping["fields"][name], *value, "{name} at {addresses}");
            }
            assert!(mapping["fields"][name].is_u64(), "{name}");
        }
        assert!(mapping["kind"].is_string() && mapping["flags"].is_array());
    }
    let size: u64 =
        truth.iter().flat_map(|(_, fields)| fields).filter(|(name, _)| name == "Size").map(|(_, n)| n).sum();
    assert_eq!(process["total"]["fields"]["Size"], size);
    assert!(process["total"]["fields"]["KernelPageSize"].is_null());
}

#[test]
fn the_columns_are_those_of_pmap() {
    let sleeper = Sleeper::new();
    let Some(other) = other_tool(here(), "pmap", &["-X", &sleeper.pid()]) else { return };
    let ours = expect(here(), &["map", "-X", &sleeper.pid()], 0).0;
    let head =
        |text: &str| text.lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let theirs = head(&other);
    for name in &theirs {
        assert!(head(&ours).contains(name), "{name} is missing in {:?}", head(&ours));
    }
    let at = |names: &[String], name: &str| names.iter().position(|known| known == name).unwrap();
    let (ours_at, theirs_at) = (at(&head(&ours), "Rss"), at(&theirs, "Rss"));
    let column = |text: &str, at: usize| {
        let rows = text
            .lines()
            .skip(2)
            .filter(|line| line.contains("-p ") || line.contains("xp ") || line.contains("wp "));
        rows.map(|line| line.split_whitespace().nth(at).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let ours = column(&ours, ours_at);
    assert!(ours.len() > 10);
    assert_eq!(ours, column(&other, theirs_at));
}

#[test]
fn lines_are_sorted_filtered_and_summed() {
    let sleeper = Sleeper::new();
    let pid = sleeper.pid();
    let field = |found: &Value, name: &str| {
        let lines = found["processes"][0]["mappings"].as_array().unwrap();
        lines.iter().map(|line| line["fields"][name].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let sizes = field(&json(here(), &["map", &pid, "--sort", "size"], 0), "Size");
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.len() > 5, "{sizes:?}");
    assert!(field(&json(here(), &["map", &pid, "--sort", "size", "--reverse"], 0), "Size").is_sorted());

    let some = json(here(), &["map", &pid, "--where", "size>=8K", "--where", "perm~*x*"], 0);
    let some = some["processes"][0]["mappings"].as_array().unwrap();
    assert!(!some.is_empty());
    assert!(some.iter().all(|line| line["permissions"].as_str().unwrap().contains('x')));
    assert!(some.iter().all(|line| line["fields"]["Size"].as_u64() >= Some(8192)));

    let by = json(here(), &["map", &pid, "--by", "mapping"], 0);
    let groups = by["processes"][0]["groups"].as_array().unwrap();
    let libc = groups.iter().find(|group| group["value"].as_str().unwrap().contains("libc")).unwrap();
    let all =
        json(here(), &["map", &pid, "--where", &format!("mapping={}", libc["value"].as_str().unwrap())], 0);
    assert_eq!(libc["fields"]["Size"], field(&all, "Size").iter().sum::<u64>());
    assert_eq!(libc["count"], field(&all, "Size").len());

    let stack = json(here(), &["map", &pid, "--where", "kind=stack"], 0);
    let stack = &stack["processes"][0]["mappings"][0];
    let inside = format!("{:x}", stack["start"].as_u64().unwrap() + 5);
    let one = json(here(), &["map", &pid, "--range", &inside], 0);
    assert_eq!(one["processes"][0]["mappings"].as_array().unwrap().len(), 1);
    assert_eq!(one["processes"][0]["mappings"][0]["name"], "[stack]");

    let lines = expect(here(), &["map", &pid, "-q", "--columns", "kind,size", "--by", "kind"], 0).0;
    assert!(lines.lines().any(|line| line.trim_start().ends_with("stack")), "{lines}");
    let total = expect(here(), &["map", &pid, "--bytes", "--columns", "size,mapping"], 0).0;
    let last = total.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(last, [sizes.iter().sum::<u64>().to_string().as_str(), "total"]);
}

#[test]
fn its_own_files_are_known() {
    let dir = folder();
    fs::write(dir.path().join("data"), vec![1; 1 << 20]).unwrap();
    let found = json(dir.path(), &["map", "self", "--open", "data", "--where", "note!="], 0);
    let lines = found["processes"][0]["mappings"].as_array().unwrap();
    assert!(!lines.is_empty(), "{found}");
    let note = lines[0]["note"].as_str().unwrap();
    assert!(note.contains("of data, by ") && note.contains("resident"), "{note}");
    let (_, why) = expect(dir.path(), &["map", "self", "--open", "missing"], 1);
    assert!(why.contains("missing"), "{why}");
}

#[test]
fn errors_say_what_to_do() {
    let (_, why) = expect(here(), &["map", "2147483647"], 1);
    assert!(why.contains("there is no process 2147483647"), "{why}");
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.contains("kthreadd")) {
        let (_, why) = expect(here(), &["map", "2"], 1);
        assert!(why.contains("thread of the kernel"), "{why}");
    }
    for bad in [
        &["map"][..],
        &["map", "0"],
        &["map", "init"],
        &["map", "self", "--sort", "nothing"],
        &["map", "self", "--columns", "nothing"],
        &["map", "self", "--where", "rss"],
        &["map", "self", "--where", "rss>x"],
        &["map", "self", "--range", "g.."],
        &["map", "1", "--open", "x"],
    ] {
        let (_, why) = expect(here(), bad, 2);
        assert!(why.contains("--help"), "{bad:?}: {why}");
    }
    let (stdout, stderr) = expect(here(), &["map", "2147483647", "self"], 1);
    assert!(stdout.contains("[stack]") && stderr.contains("no process"));
    assert!(expect(here(), &["map", "--help"], 0).0.contains("Examples:"));
}

#[test]
fn another_users_process_is_refused_with_a_remedy() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return not_root("become another user");
    }
    let dir = tempfile::TempDir::new().unwrap();
    let binary = dir.path().join("mapwright");
    fs::copy(env!("CARGO_BIN_EXE_mapwright"), &binary).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sleeper = Sleeper::new();
    let output =
        Command::new(&binary).args(["map", &sleeper.pid()]).uid(65_534).gid(65_534).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let why = text(&output.stderr);
    assert!(why.contains("belongs to user 0") && why.contains("as root"), "{why}");
}
