//! Clients of a pager server in processes of their own.
#![allow(dead_code)] // not every test says something

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use mapwright::Pager;

use crate::common::child;

/// A child that is talked with by lines, and killed when the test ends.
pub struct Talking {
    /// The process.
    pub child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Talking {
    /// Starts one, of this test.
    pub fn start(test: &str, role: &str) -> Self {
        let mut command = child(test, role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    /// The next line that is meant for us: the harness prints others.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the child ended");
            if let Some((_, said)) = line.trim_end().split_once(">> ") {
                return said.to_owned();
            }
        }
    }

    /// Says a line to it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In a child: says something to the test.
pub fn say(line: impl std::fmt::Display) {
    println!(">> {line}");
    std::io::stdout().flush().unwrap();
}

/// In a child: waits for a line of the test.
pub fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// In a child: role, socket and file.
pub fn parts(role: &str) -> (String, Pager, PathBuf) {
    let mut parts = role.split('|');
    let mut next = || parts.next().unwrap().to_owned();
    let (part, socket, file) = (next(), next(), next());
    (part, Pager::connect(socket).unwrap(), PathBuf::from(file))
}

/// What a child is told, for [`parts`].
pub fn as_role(part: &str, socket: &Path, file: &Path) -> String {
    format!("{part}|{}|{}", socket.display(), file.display())
}

/// Waits for something.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
