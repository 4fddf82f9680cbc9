//! One program in a folder of its own, without `mapwright run` and then with it under each of some limits.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub use crate::common::{compile, noise, source};
use crate::common::{folder, serves, skip, text};

pub const MIB: usize = 1 << 20;
/// More than what programs map here, about as much, and much less.
const LIMITS: [&str; 3] = ["1GiB", "64MiB", "4MiB"];
/// Seconds that a program may take: several times what it takes on two busy cores.
const SECONDS: u64 = 150;

pub const MORE_THAN_ONCE: &str = "open more than once";
pub const OPEN_FOR_WRITING: &str = "open for writing";
pub const PAST_ITS_END: &str = "mapped past its end";
pub const SMALL: &str = "less than 1 MiB";

/// Whether every program runs at every limit, which takes minutes.
pub fn thorough() -> bool {
    std::env::var("MAPWRIGHT_PROGRAMS").as_deref() == Ok("all")
}

/// Whether a program is installed, by which package.
#[track_caller]
pub fn have(program: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        skip(&format!("there is no {program}: apt-get install {package}, or run ./test, which does"));
    }
    found
}

/// Something that `./test` puts beside the build's own folders, because it is no package to install.
#[track_caller]
pub fn beside_the_build(path: &str) -> Option<String> {
    let found = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("run-programs").join(path);
    if !found.is_file() {
        skip(&format!("there is no {}: run ./test, which makes it", found.display()));
        return None;
    }
    Some(found.to_str().unwrap().to_owned())
}

/// Copies what is in a folder: files that take long to make are made once.
pub fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copy_to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&copy_to).unwrap();
            copy(&entry.path(), &copy_to);
        } else {
            std::fs::copy(entry.path(), copy_to).unwrap();
        }
    }
}

/// A program, its files, and what of it must not differ.
pub struct Trial<'a> {
    command: Vec<&'a str>,
    prepare: Box<dyn Fn(&Path) + 'a>,
    said: fn(&Output) -> String,
    is_compared: fn(&str) -> bool,
    limits: &'a [&'a str],
    seconds: u64,
}

impl<'a> Trial<'a> {
    /// In an empty folder, at all limits, with its standard output and all files compared.
    pub fn new(command: &[&'a str]) -> Self {
        Self {
            command: command.to_vec(),
            prepare: Box::new(|_| ()),
            said: |output| text(&output.stdout),
            is_compared: |_| true,
            limits: &LIMITS,
            seconds: SECONDS,
        }
    }

    /// What is in the folder before.
    pub fn on(mut self, prepare: impl Fn(&Path) + 'a) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    /// What is compared of what it says.
    pub fn saying(mut self, said: fn(&Output) -> String) -> Self {
        self.said = said;
        self
    }

    /// Which files are compared afterwards; not those in which what is written first comes first.
    pub fn leaving(mut self, is_compared: fn(&str) -> bool) -> Self {
        self.is_compared = is_compared;
        self
    }

    /// At all limits but the largest.
    pub fn short(mut self) -> Self {
        self.limits = &LIMITS[1..];
        self
    }

    /// How long it may take, in seconds, where that is more than others may.
    pub fn within(mut self, seconds: u64) -> Self {
        self.seconds = self.seconds.max(seconds);
        self
    }

    /// At the smallest limit alone, where nothing depends on it, unless told to be thorough.
    pub fn tight(mut self) -> Self {
        if !thorough() {
            self.limits = &LIMITS[2..];
        }
        self
    }

    /// Runs it in all ways, compares, and gives the reports. `None` where nothing can be served. The program must succeed.
    #[track_caller]
    pub fn run(self) -> Option<Vec<Report>> {
        if !serves() {
            return None;
        }
        let (control, _) = self.once(None);
        let succeeded = control.status == (Some(0), None);
        assert!(succeeded, "{:?} without run: {control:#?} {}", self.command, control.errors);
        let mut reports = Vec::new();
        for limit in self.limits {
            let (seen, report) = self.once(Some(limit));
            let report = report.unwrap();
            assert!(
                seen.alike() == control.alike(),
                "{:?}, with {limit}: {seen:#?}{}\nwithout run: {control:#?}\n{:#}",
                self.command,
                seen.errors,
                report.0
            );
            reports.push(report);
        }
        Some(reports)
    }

    #[track_caller]
    fn once(&self, limit: Option<&str>) -> (Seen, Option<Report>) {
        let root = folder();
        let dir = root.path().join("in");
        std::fs::create_dir(&dir).unwrap();
        (self.prepare)(&dir);
        let (report, option) =
            (root.path().join("report"), format!("--report={}/report", root.path().display()));
        let seconds = self.seconds.to_string();
        let mut run = vec!["--kill-after=5", &seconds];
        if let Some(limit) = limit {
            run.extend([env!("CARGO_BIN_EXE_mapwright"), "run", "--limit", limit, "--json", &option, "--"]);
        }
        let output = clean(Command::new("timeout").args(run).args(&self.command).current_dir(&dir)).output();
        let output = output.unwrap();
        let report = limit.map(|_| match std::fs::read_to_string(&report) {
            Ok(text) => Report(serde_json::from_str(&text).unwrap()),
            Err(error) => panic!("{:?}: {error}: {output:?}", self.command),
        });
        let mut files = BTreeMap::new();
        collect(&dir, &dir, self.is_compared, &mut files);
        let seen = Seen {
            status: (output.status.code(), output.status.signal()),
            said: (self.said)(&output),
            files,
            errors: text(&output.stderr),
        };
        (seen, report)
    }
}

/// The same surroundings for every program, none of this machine's settings.
pub fn clean(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent").env_remove("TMPDIR").stdin(Stdio::null());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONHASHSEED", "0").env("GIT_CONFIG_NOSYSTEM", "1")
}

/// What a program did.
#[derive(Debug)]
struct Seen {
    status: (Option<i32>, Option<i32>),
    said: String,
    /// Length and hash of each file, by its path.
    files: BTreeMap<String, (u64, u64)>,
    errors: String,
}

impl Seen {
    fn alike(&self) -> impl PartialEq {
        (self.status, self.said.clone(), self.files.clone())
    }
}

fn collect(root: &Path, dir: &Path, is_compared: fn(&str) -> bool, into: &mut BTreeMap<String, (u64, u64)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            collect(root, &path, is_compared, into);
        } else if meta.is_file() && is_compared(&name) {
            let mut hasher = DefaultHasher::new();
            std::fs::read(&path).unwrap().hash(&mut hasher);
            into.insert(name, (meta.len(), hasher.finish()));
        }
    }
}

/// What `run` reports.
pub struct Report(pub Value);

impl Report {
    /// All that is said of files whose names end so.
    #[track_caller]
    fn of(&self, name: &str) -> Vec<&Value> {
        let files = self.0["files"].as_array().unwrap();
        files.iter().filter(|file| file["path"].as_str().unwrap().ends_with(name)).collect()
    }

    /// Maps of files with such a name that were served.
    #[track_caller]
    pub fn served(&self, name: &str) -> u64 {
        self.of(name).iter().map(|file| file["maps"].as_u64().unwrap()).sum()
    }

    /// Maps of files with such a name that were given back, for some reason.
    #[track_caller]
    pub fn given_back(&self, name: &str, why: &str) -> u64 {
        let counts = self.of(name).into_iter().flat_map(|file| file["given_back"].as_object().unwrap());
        counts.filter(|(reason, _)| reason.contains(why)).map(|(_, count)| count.as_u64().unwrap()).sum()
    }

    /// That maps of a file were the kernel's, and why.
    #[track_caller]
    pub fn is_the_kernels(&self, name: &str, why: &str) {
        let told = self.of(name).iter().any(|file| file["kernel"].to_string().contains(why));
        assert!(told, "{name}, {why}: {:#}", self.0);
    }

    /// That the pager has served pages, and where the limit is small has evicted some.
    #[track_caller]
    pub fn did_work(&self) {
        let totals = |name: &str| self.0["totals"][name].as_u64().unwrap();
        let tight = self.0["limit_bytes"].as_u64().unwrap() <= 4 << 20;
        assert!(totals("faults") > 0 && totals("fills") > 0, "{:#}", self.0);
        assert!(!tight || totals("evictions") > 0, "{:#}", self.0);
    }

    /// Bytes of files that were written from what programs have stored.
    pub fn written_back(&self) -> u64 {
        self.0["totals"]["written_back_bytes"].as_u64().unwrap()
    }

    /// Programs that were started with the shim and are called so.
    pub fn programs(&self, name: &str) -> usize {
        let is_it = |program: &&Value| {
            Path::new(program["path"].as_str().unwrap()).file_name() == Some(OsStr::new(name))
        };
        self.0["programs"].as_array().unwrap().iter().filter(is_it).count()
    }
}
