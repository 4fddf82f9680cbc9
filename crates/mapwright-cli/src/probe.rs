//! What this machine allows, as far as /proc, /sys and the pager's own probe tell. `doctor` presents it.

use std::fs::{self, OpenOptions};
use std::path::Path;

use mapwright::mmap::{Advice, Support};
use mapwright_measure::{cgroup, machine, size};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// How a fact bears on mapwright.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What mapwright wants.
    Good,
    /// It works, with less.
    Limited,
    /// Something does not work.
    Missing,
    /// Good to know.
    Fact,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it belongs to.
    pub section: &'static str,
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub value: String,
    /// How that bears on mapwright.
    pub state: State,
    /// What to do about it, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn new(section: &'static str, name: &str, value: impl Into<String>, state: State) -> Self {
        Self { section, name: name.to_owned(), value: value.into(), state, remedy: None }
    }

    fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.to_owned());
        self
    }
}

/// What the pager's own probe found by trying (see `uffd_probe`).
pub struct Probed {
    /// The userfaultfd that this process gets, or why it gets none.
    pub userfaultfd: std::result::Result<UserfaultFacts, String>,
    /// Whether PAGEMAP_SCAN works.
    pub pagemap_scan: std::result::Result<(), String>,
    /// Whether an io_uring can be made.
    pub io_uring: std::result::Result<(), String>,
}

/// The userfaultfd that this process gets.
pub struct UserfaultFacts {
    /// As UFFDIO_API reports them.
    pub features: u64,
    /// Whether faults from inside system calls are not served.
    pub user_mode_only: bool,
    /// How it was made: by system call or through the device.
    pub source: String,
}

/// Names of the bits of `uffdio_api.features`, include/uapi/linux/userfaultfd.h of Linux 6.18, and what mapwright loses
/// without the bit (empty: nothing).
pub const FEATURES: [(&str, &str); 17] = [
    ("PAGEFAULT_FLAG_WP", "dirty pages are found by protecting them"),
    ("EVENT_FORK", "children of a served program keep their mappings"),
    ("EVENT_REMAP", ""),
    ("EVENT_REMOVE", ""),
    ("MISSING_HUGETLBFS", ""),
    ("MISSING_SHMEM", "shared frames are filled on demand"),
    ("EVENT_UNMAP", ""),
    ("SIGBUS", "faults are served in the thread that faults (fault mode in-thread)"),
    ("THREAD_ID", "a fault's thread is known"),
    ("MINOR_HUGETLBFS", ""),
    ("MINOR_SHMEM", "a frame in memory is mapped without a copy"),
    ("EXACT_ADDRESS", "a fault's address is known to the byte"),
    ("WP_HUGETLBFS_SHMEM", "writes to shared frames are tracked"),
    ("WP_UNPOPULATED", "writes to pages never read are tracked"),
    ("POISON", "a failed fill is reported to every thread"),
    ("WP_ASYNC", "the first write to a page wakes nobody (Linux 6.7)"),
    ("MOVE", "read-only files are served without copies (Linux 6.8)"),
];

/// What the library finds when it tries the calls it needs.
pub fn uffd_probe() -> Option<Probed> {
    let machine = mapwright::Machine::probe();
    Some(Probed {
        userfaultfd: machine.userfaultfd.map_err(|error| error.to_string()).map(|facts| UserfaultFacts {
            features: facts.features,
            user_mode_only: facts.user_mode_only,
            source: facts.source.to_string(),
        }),
        pagemap_scan: machine.pagemap_scan.map(|_| ()).map_err(|error| error.to_string()),
        io_uring: machine.io_uring.map_err(|error| error.to_string()),
    })
}

/// Everything that is found without the pager's probe, then what that found.
pub fn findings(probed: Option<&Probed>) -> Vec<Finding> {
    let mut found = vec![kernel()];
    found.extend(userfaultfd(probed));
    found.extend(programs(probed));
    found.extend(other_calls(probed));
    found.extend(kernel_mappings(&Support::probe()));
    found.extend(huge_pages());
    found.push(memory_cgroup());
    found.extend(limits());
    found.extend(container());
    found
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let finding = |state| Finding::new("kernel", "version", machine::kernel(), state);
    match version(&release) {
        Some(version) if version >= (6, 8) => finding(State::Good),
        Some(version) if version >= (6, 7) => {
            finding(State::Limited).remedy("Linux 6.8 adds UFFDIO_MOVE: read-only files without copies")
        }
        Some(_) => finding(State::Limited)
            .remedy("Linux 6.7 or later has PAGEMAP_SCAN and WP_ASYNC, which finding dirty pages rests on"),
        None => finding(State::Fact),
    }
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn userfaultfd(probed: Option<&Probed>) -> Vec<Finding> {
    const SECTION: &str = "userfaultfd";
    let mut found = vec![];
    match probed.map(|probed| &probed.userfaultfd) {
        None => found.push(
            Finding::new(SECTION, "available", "not tried", State::Missing)
                .remedy("this build was made without the pager (feature `lib`)"),
        ),
        Some(Err(why)) => found.push(Finding::new(SECTION, "available", why.clone(), State::Missing).remedy(
            "allow userfaultfd(2) in the seccomp profile, or give the user access to /dev/userfaultfd",
        )),
        Some(Ok(facts)) if facts.user_mode_only => found.push(
            Finding::new(
                SECTION,
                "available",
                format!("yes, through {}, for faults in user mode only", facts.source),
                State::Limited,
            )
            .remedy("sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd, also serves system calls"),
        ),
        Some(Ok(facts)) => {
            let value = format!("yes, through {}, system calls included", facts.source);
            found.push(Finding::new(SECTION, "available", value, State::Good));
        }
    }
    let sysctl = read("/proc/sys/vm/unprivileged_userfaultfd");
    found.push(Finding::new(
        SECTION,
        "vm.unprivileged_userfaultfd",
        sysctl.unwrap_or_else(|| "absent (kernel without userfaultfd, or before 5.2)".to_owned()),
        State::Fact,
    ));
    found.push(device_node());
    if let Some(Probed { userfaultfd: Ok(facts), .. }) = probed {
        found.extend(FEATURES.iter().enumerate().map(|(bit, (name, loss))| feature(facts, bit, name, loss)));
    }
    found
}

fn device_node() -> Finding {
    let finding = |value: String, state| Finding::new("userfaultfd", "/dev/userfaultfd", value, state);
    // Opening the device makes nothing yet: userfaultfds come from an ioctl on it.
    match OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
        Ok(_) => finding("may be opened".to_owned(), State::Good),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            finding("absent".to_owned(), State::Fact)
        }
        Err(error) => finding(error.to_string(), State::Limited).remedy(
            "a udev rule or `setfacl -m u:USER:rw /dev/userfaultfd` gives full userfaultfd without root",
        ),
    }
}

fn feature(facts: &UserfaultFacts, bit: usize, name: &str, loss: &str) -> Finding {
    let there = facts.features >> bit & 1 == 1;
    let state = match (there, loss.is_empty()) {
        (true, _) => State::Good,
        (false, true) => State::Fact,
        (false, false) => State::Limited,
    };
    let finding = Finding::new("userfaultfd", name, if there { "yes" } else { "no" }, state);
    if state == State::Limited { finding.remedy(&format!("a newer kernel has it: {loss}")) } else { finding }
}

/// What `mapwright run` can do for programs, and how to get the rest.
fn programs(probed: Option<&Probed>) -> Vec<Finding> {
    const SECTION: &str = "mapwright run";
    let finding = |name: &str, value: &str, state| Finding::new(SECTION, name, value, state);
    let has_poison = |facts: &UserfaultFacts| {
        FEATURES
            .iter()
            .position(|(name, _)| *name == "POISON")
            .is_some_and(|bit| facts.features >> bit & 1 == 1)
    };
    let served = match probed.map(|probed| &probed.userfaultfd) {
        _ if !crate::run::has_shim() => {
            finding("programs", "run on the kernel's mmap: this mapwright carries no shim", State::Missing)
                .remedy("build mapwright from its workspace, for Linux with the GNU C library")
        }
        None | Some(Err(_)) => {
            finding("programs", "run on the kernel's mmap: there is no userfaultfd", State::Missing)
                .remedy("see userfaultfd")
        }
        Some(Ok(facts)) if facts.user_mode_only => finding(
            "programs",
            "run on the kernel's mmap: this user's userfaultfd does not serve system calls",
            State::Missing,
        )
        .remedy(
            "run as root, `sysctl vm.unprivileged_userfaultfd=1`, or `setfacl -m u:USER:rw /dev/userfaultfd`",
        ),
        Some(Ok(facts)) if !has_poison(facts) => {
            finding("programs", "run on the kernel's mmap: userfaultfd lacks POISON", State::Missing)
                .remedy("Linux 6.6 or later has it")
        }
        Some(Ok(_)) => finding("programs", "what they map of files is served", State::Good),
    };
    let mut found = vec![served];
    found.push(match read("/proc/sys/fs/leases-enable").as_deref() {
        Some("0") => finding("fs.leases-enable", "0: nothing can be served", State::Missing).remedy(
            "sysctl fs.leases-enable=1: who writes a file that is served must be kept waiting for a moment",
        ),
        Some(value) => finding("fs.leases-enable", value, State::Good),
        None => finding("fs.leases-enable", "absent", State::Fact),
    });
    found.push(if may_lease(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        finding("files of others", "are served too (CAP_LEASE)", State::Good)
    } else {
        finding("files of others", "stay the kernel's: this user has no CAP_LEASE", State::Limited).remedy(
            "run as root, or with CAP_LEASE: `setpriv --inh-caps +lease --ambient-caps +lease`, as root before it becomes the user",
        )
    });
    found.push(match mapwright_sys::frames::can_be_large() {
        Ok(()) => finding("frames", "are on huge pages where whole 2 MiB are read", State::Good),
        Err(why) => finding("frames", &format!("are on pages of 4 KiB: {why}"), State::Limited).remedy(
            "run as root (CAP_SYS_ADMIN), on Linux 6.15 or later: what is read in order takes half the time",
        ),
    });
    found
}

/// Whether a process with such a /proc/PID/status may have leases on files of others (capabilities(7), CAP_LEASE).
fn may_lease(status: &str) -> bool {
    const CAP_LEASE: u32 = 28;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> CAP_LEASE & 1 == 1)
}

fn other_calls(probed: Option<&Probed>) -> Vec<Finding> {
    let tried = |name: &str, outcome: Option<&std::result::Result<(), String>>, remedy: &str| match outcome {
        None => Finding::new("system calls", name, "not tried", State::Fact),
        Some(Ok(())) => Finding::new("system calls", name, "yes", State::Good),
        Some(Err(why)) => Finding::new("system calls", name, why.clone(), State::Limited).remedy(remedy),
    };
    let disabled = match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("0") => ("0: allowed for all", State::Good),
        Some("1") => ("1: only for kernel.io_uring_group", State::Limited),
        Some("2") => ("2: disabled", State::Limited),
        _ => ("absent: allowed for all", State::Fact),
    };
    let mut sysctl = Finding::new("system calls", "kernel.io_uring_disabled", disabled.0, disabled.1);
    if disabled.1 == State::Limited {
        sysctl =
            sysctl.remedy("sysctl kernel.io_uring_disabled=0; without io_uring, threads read with pread(2)");
    }
    vec![
        tried(
            "PAGEMAP_SCAN",
            probed.map(|probed| &probed.pagemap_scan),
            "Linux 6.7 or later; before it the pager cannot find dirty pages and maps are read-only or kernel maps",
        ),
        tried(
            "io_uring",
            probed.map(|probed| &probed.io_uring),
            "allow io_uring_setup(2) in the seccomp profile; without it threads read with pread(2)",
        ),
        sysctl,
    ]
}

/// What `mapwright::mmap` finds in this kernel.
fn kernel_mappings(support: &Support) -> Vec<Finding> {
    const SECTION: &str = "kernel mappings";
    let (known, unknown): (Vec<_>, Vec<_>) = support.advice.iter().partition(|(_, is_known)| *is_known);
    let names = |advice: &[&(Advice, bool)]| {
        advice.iter().map(|(advice, _)| format!("{advice:?}")).collect::<Vec<_>>().join(" ")
    };
    let mut advice = Finding::new(
        SECTION,
        "advice",
        if unknown.is_empty() { "all".to_owned() } else { names(&known) },
        if unknown.is_empty() { State::Good } else { State::Limited },
    );
    if !unknown.is_empty() {
        let missing = names(&unknown);
        advice = advice.remedy(&format!("a newer kernel, or one that is built with it, has {missing}"));
    }
    let has = |name: &str, there: bool, remedy: &str| {
        let state = if there { State::Good } else { State::Limited };
        let finding = Finding::new(SECTION, name, if there { "yes" } else { "no" }, state);
        if there { finding } else { finding.remedy(remedy) }
    };
    vec![
        advice,
        has("mseal", support.mseal, "Linux 6.10: mappings that nobody can change or unmap"),
        has("cachestat", support.cachestat, "Linux 6.5: dirty pages of a file are counted without a mapping"),
        has(
            "guard markers",
            support.guard_markers,
            "Linux 6.13: guard pages that are no mappings of their own",
        ),
        has("NUMA policies", support.numa, "a kernel with NUMA"),
    ]
}

fn huge_pages() -> Vec<Finding> {
    const SECTION: &str = "huge pages";
    let chosen = |file: &str| {
        let text = read(&format!("/sys/kernel/mm/transparent_hugepage/{file}"))?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let mut found = Vec::new();
    for (file, name) in [("enabled", "transparent, anonymous"), ("shmem_enabled", "transparent, shmem")] {
        let finding = match chosen(file) {
            None => Finding::new(SECTION, name, "not in this kernel", State::Fact),
            Some(value) if value == "never" && file == "enabled" => {
                Finding::new(SECTION, name, value, State::Limited).remedy(
                    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes moved frames cheaper",
                )
            }
            // Collapsing a memfd on request works whatever this says.
            Some(value) if value == "never" => Finding::new(SECTION, name, value, State::Fact),
            Some(value) => Finding::new(SECTION, name, value, State::Good),
        };
        found.push(finding);
    }
    let reserved = read("/proc/sys/vm/nr_hugepages").unwrap_or_else(|| "not in this kernel".to_owned());
    found.push(Finding::new(SECTION, "hugetlb pages reserved", reserved, State::Fact));
    found
}

fn memory_cgroup() -> Finding {
    match cgroup::find() {
        Ok(parent) => {
            let version = match parent.version {
                cgroup::Version::V1 => "v1",
                cgroup::Version::V2 => "v2",
            };
            let value = format!("{version}, groups can be made below {}", parent.dir.display());
            Finding::new("cgroup", "memory", value, State::Good)
        }
        Err(why) => Finding::new("cgroup", "memory", why, State::Limited)
            .remedy("only `compare` needs it: without it the kernel's ways are not held to the limit"),
    }
}

fn limits() -> Vec<Finding> {
    const SECTION: &str = "limits";
    let sysctl = |name: &str| read(&format!("/proc/sys/vm/{name}")).unwrap_or_else(|| "unknown".to_owned());
    let maps = sysctl("max_map_count");
    let few = maps.parse::<u64>().is_ok_and(|count| count < 65_530);
    let mut map_count =
        Finding::new(SECTION, "vm.max_map_count", maps, if few { State::Limited } else { State::Good });
    if few {
        map_count =
            map_count.remedy("sysctl vm.max_map_count=65530 or more: each mapping takes at least one");
    }
    let mut found = vec![map_count];
    let resources = [
        ("RLIMIT_AS", Resource::As),
        ("RLIMIT_MEMLOCK", Resource::Memlock),
        ("RLIMIT_NOFILE", Resource::Nofile),
    ];
    for (name, resource) in resources {
        let current = getrlimit(resource).current;
        let value = match (current, resource) {
            (None, _) => "unlimited".to_owned(),
            (Some(count), Resource::Nofile) => count.to_string(),
            (Some(bytes), _) => size::show(bytes),
        };
        let finding = Finding::new(SECTION, name, value, State::Fact);
        found.push(match (current, resource) {
            (Some(_), Resource::As) => Finding { state: State::Limited, ..finding }
                .remedy("ulimit -v unlimited: a mapping needs address space for the whole file"),
            (Some(count), Resource::Nofile) if count < 1024 => Finding { state: State::Limited, ..finding }
                .remedy("ulimit -n 1024 or more: each open file takes a few descriptors"),
            _ => finding,
        });
    }
    let overcommit = match sysctl("overcommit_memory").as_str() {
        "0" => ("0: heuristic".to_owned(), State::Good),
        "1" => ("1: always".to_owned(), State::Good),
        "2" => ("2: never".to_owned(), State::Limited),
        other => (other.to_owned(), State::Fact),
    };
    let finding = Finding::new(SECTION, "vm.overcommit_memory", overcommit.0, overcommit.1);
    found.push(if overcommit.1 == State::Limited {
        finding.remedy("with 2, private mappings count in full: sysctl vm.overcommit_memory=0, or raise overcommit_ratio")
    } else {
        finding
    });
    found
}

fn container() -> Vec<Finding> {
    const SECTION: &str = "confinement";
    let status = |name| machine::first_value("/proc/self/status", name);
    let seccomp = match status("Seccomp").as_deref() {
        Some("0") => Finding::new(SECTION, "seccomp", "none", State::Good),
        Some("2") => Finding::new(SECTION, "seccomp", "a filter", State::Limited).remedy(
            "container profiles usually refuse userfaultfd(2) and io_uring: `--security-opt seccomp=PROFILE` with both allowed",
        ),
        Some(_) => Finding::new(SECTION, "seccomp", "strict", State::Limited),
        None => Finding::new(SECTION, "seccomp", "unknown", State::Fact),
    };
    let capabilities = status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    // CAP_SYS_PTRACE is bit 19; userfaultfd(2) for kernel faults asks for it while the sysctl is 0.
    let ptrace = match capabilities {
        Some(bits) if bits >> 19 & 1 == 1 => "yes",
        Some(_) => "no",
        None => "unknown",
    };
    let marks = ["/.dockerenv", "/run/.containerenv"];
    let container = marks.into_iter().find(|mark| Path::new(mark).exists());
    vec![
        seccomp,
        Finding::new(SECTION, "CAP_SYS_PTRACE", ptrace, State::Fact),
        Finding::new(
            SECTION,
            "container",
            container.map_or("no sign of one".to_owned(), |mark| format!("yes ({mark})")),
            State::Fact,
        ),
    ]
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_to_leases_is_read_from_the_set() {
        assert!(may_lease("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(may_lease("CapEff:\t0000000010000000\n"));
        assert!(!may_lease("CapEff:\t000001ffefffffff\n") && !may_lease("CapPrm:\t0000000010000000\n"));
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("6.8-rc1"), Some((6, 8)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn what_the_kernel_lacks_of_mappings_has_a_remedy() {
        let mut support = Support::probe();
        support.advice = vec![(Advice::Normal, true), (Advice::Collapse, false)];
        (support.mseal, support.cachestat) = (false, true);
        let found = kernel_mappings(&support);
        assert_eq!((found[0].value.as_str(), found[0].state), ("Normal", State::Limited));
        assert!(found[0].remedy.as_ref().is_some_and(|remedy| remedy.contains("Collapse")));
        assert!(found[1].remedy.as_ref().is_some_and(|remedy| remedy.contains("6.10")));
        assert_eq!((found[2].state, &found[2].remedy), (State::Good, &None));
    }

    #[test]
    fn each_missing_feature_that_matters_has_a_remedy() {
        let facts = UserfaultFacts { features: 0x1ff, user_mode_only: true, source: "test".to_owned() };
        let probed =
            Probed { userfaultfd: Ok(facts), pagemap_scan: Err("ENOTTY".to_owned()), io_uring: Ok(()) };
        let found = findings(Some(&probed));
        let by_name = |name: &str| found.iter().find(|finding| finding.name == name).unwrap();
        assert_eq!(by_name("MOVE").state, State::Limited);
        assert_eq!(by_name("SIGBUS").state, State::Good);
        assert_eq!(by_name("MINOR_HUGETLBFS").state, State::Fact);
        assert_eq!(by_name("available").state, State::Limited);
        for finding in &found {
            let needs = matches!(finding.state, State::Missing) || finding.section == "userfaultfd";
            assert!(!needs || finding.state != State::Limited || finding.remedy.is_some(), "{finding:?}");
        }
    }
}
