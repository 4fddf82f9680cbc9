//! `mapwright serve` from outside: it listens, serves, and ends.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};

use common::{expect, folder, mapwright, skip};
use mapwright::{Machine, MapOptions, Pager, Strategy};

/// A server that is killed when the test ends.
struct Serving(Child, BufReader<ChildStdout>);

impl Serving {
    /// Starts one and waits until it listens.
    fn start(dir: &std::path::Path, arguments: &[&str]) -> Self {
        let mut child = mapwright(dir, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert!(line.starts_with("serving 8 MiB at socket"), "{line}");
        Self(child, from)
    }

    fn end(mut self) -> (String, Option<i32>) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut rest = String::new();
        self.1.read_to_string(&mut rest).unwrap();
        (rest, self.0.wait().unwrap().code())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_serves_until_it_is_told_to_end() {
    if let Err(error) = Machine::probe().userfaultfd {
        return skip(&error.to_string());
    }
    let dir = folder();
    // A relative path: that of a folder of the build may be too long for a socket.
    let arguments = ["serve", "--socket", "socket", "--limit", "8M"];
    let server = Serving::start(dir.path(), &arguments);
    let (_, stderr) = expect(dir.path(), &arguments, 1);
    assert!(stderr.contains("in use by another server"), "{stderr}");
    let bytes: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
    std::fs::write(dir.path().join("file"), &bytes).unwrap();
    // By the descriptor of the folder, for the same reason.
    let folder = std::fs::File::open(dir.path()).unwrap();
    let socket = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&folder));
    let pager = Pager::connect(&socket).unwrap();
    assert_eq!(pager.budget(), 8 << 20);
    let map =
        MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(dir.path().join("file")).unwrap();
    assert!(*map == *bytes);
    drop((map, pager));
    let (rest, code) = server.end();
    assert_eq!(code, Some(0));
    assert!(rest.starts_with("ended with") && rest.contains("1 MiB read"), "{rest}");
    assert!(!dir.path().join("socket").exists());
}

#[test]
fn usage_is_checked() {
    let dir = folder();
    let (_, stderr) = expect(dir.path(), &["serve"], 2);
    assert!(stderr.contains("--socket"), "{stderr}");
    expect(dir.path(), &["serve", "--socket", "s", "--limit", "much"], 2);
    let (_, stderr) = expect(dir.path(), &["serve", "--socket", "s", "--limit", "4096"], 1);
    assert!(stderr.contains("a budget of 4096 bytes"), "{stderr}");
    std::fs::write(dir.path().join("file"), "kept").unwrap();
    let (_, stderr) = expect(dir.path(), &["serve", "--socket", "file", "--limit", "8M"], 1);
    assert!(stderr.contains("no socket"), "{stderr}");
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"kept");
    let (stdout, _) = expect(dir.path(), &["serve", "--help"], 0);
    assert!(stdout.contains("Examples:") && stdout.contains("Exit codes:"), "{stdout}");
}
