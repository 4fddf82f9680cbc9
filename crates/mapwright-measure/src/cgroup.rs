//! A memory cgroup for each worker of a comparison, on cgroup v1, v2 or a hybrid of them.
//!
//! Groups are made below the caller's own group (v1), or below the nearest ancestor that hands the memory controller to
//! its children (v2: a group that has processes of its own cannot, see "No Internal Process Constraint" in
//! Documentation/admin-guide/cgroup-v2.rst). No setting of a group that existed before is changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Which generation of the interface holds the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A directory below which memory groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Which interface its children have.
    pub version: Version,
    /// The directory.
    pub dir: PathBuf,
}

/// Finds where a memory group can be made, or says why it cannot.
pub fn find() -> Result<Parent, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let candidates = candidates(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
    // Removed at once.
    first_usable(candidates, |parent| Group::create(parent, 1 << 30).map(drop))
}

/// Memory of the group that this process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes now, page cache included.
    pub now: u64,
    /// The most that it was.
    pub most: u64,
}

/// What the group of this process uses, or why that can't be told.
pub fn own_usage() -> Result<Usage, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let nearest = candidates(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
    usage_of(nearest.first().ok_or("no group of this process is visible")?)
}

fn usage_of(group: &Parent) -> Result<Usage, String> {
    let names = match group.version {
        Version::V1 => ["memory.usage_in_bytes", "memory.max_usage_in_bytes"],
        Version::V2 => ["memory.current", "memory.peak"],
    };
    let number = |name: &str| {
        let path = group.dir.join(name);
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        text.trim().parse().map_err(|_| format!("{}: no number", path.display()))
    };
    Ok(Usage { now: number(names[0])?, most: number(names[1])? })
}

fn first_usable(
    candidates: Vec<Parent>,
    try_out: impl Fn(&Parent) -> io::Result<()>,
) -> Result<Parent, String> {
    let mut last = String::new();
    for parent in candidates {
        if parent.version == Version::V2 && !lists_memory(&parent.dir.join("cgroup.subtree_control")) {
            if last.is_empty() {
                last = format!("{} does not pass the memory controller on", parent.dir.display());
            }
            continue;
        }
        match try_out(&parent) {
            Ok(()) => return Ok(parent),
            Err(error) => last = format!("{}: {error}", parent.dir.display()),
        }
    }
    Err(format!("{last}; run as root, or under `systemd-run --user --scope`"))
}

fn lists_memory(file: &Path) -> bool {
    fs::read_to_string(file)
        .is_ok_and(|text| text.split_whitespace().any(|controller| controller == "memory"))
}

/// Directories to try, nearest first, from the texts of /proc/self/mountinfo and /proc/self/cgroup.
fn candidates(mountinfo: &str, cgroup: &str) -> Result<Vec<Parent>, String> {
    let line = |wanted: &dyn Fn(&str, &str) -> bool| {
        cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(id, controllers).then(|| path.to_owned())
        })
    };
    // In a hybrid mount the memory controller sits in one of the two: a v1 line with `memory` decides.
    if let Some(path) = line(&|_, controllers| controllers.split(',').any(|name| name == "memory")) {
        let mount = mount_of(mountinfo, "cgroup", Some("memory"))
            .ok_or("the v1 memory controller is not mounted here".to_owned())?;
        return Ok(vec![Parent { version: Version::V1, dir: mount.dir_of(&path) }]);
    }
    let path = line(&|id, controllers| id == "0" && controllers.is_empty())
        .ok_or("this kernel has no cgroups".to_owned())?;
    let mount =
        mount_of(mountinfo, "cgroup2", None).ok_or("no cgroup file system is mounted here".to_owned())?;
    let own = mount.dir_of(&path);
    Ok(own
        .ancestors()
        .take_while(|dir| dir.starts_with(&mount.point))
        .map(|dir| Parent { version: Version::V2, dir: dir.to_owned() })
        .collect())
}

struct Mount {
    /// The group that is visible at the mount point: not `/` in a container without a cgroup namespace.
    root: String,
    point: PathBuf,
}

impl Mount {
    fn dir_of(&self, group: &str) -> PathBuf {
        let below = Path::new(group).strip_prefix(&self.root).unwrap_or(Path::new(""));
        // A path with `..` leads to a group outside our namespace: the mount point is the nearest that is visible.
        if below.components().any(|part| part.as_os_str() == "..") {
            return self.point.clone();
        }
        self.point.components().chain(below.components()).collect()
    }
}

fn mount_of(mountinfo: &str, kind: &str, option: Option<&str>) -> Option<Mount> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (this_kind, _source, options) = (right.next()?, right.next()?, right.next().unwrap_or(""));
        let has_option = option.is_none_or(|wanted| options.split(',').any(|option| option == wanted));
        (this_kind == kind && has_option).then(|| Mount { root: root.to_owned(), point: point.into() })
    })
}

/// A memory group that is removed when dropped.
pub struct Group {
    version: Version,
    dir: PathBuf,
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl Group {
    /// Makes a group that may use `limit` bytes of memory, page cache included, and no swap.
    pub fn create(parent: &Parent, limit: u64) -> io::Result<Self> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let dir = parent.dir.join(format!("mapwright-compare-{}-{serial}", std::process::id()));
        fs::create_dir(&dir)?;
        let group = Self { version: parent.version, dir };
        group.limit(limit)?;
        Ok(group)
    }

    fn limit(&self, limit: u64) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                self.write("memory.limit_in_bytes", limit)?;
                // Swap accounting may be off; without swap these change nothing.
                let _ = self.write("memory.memsw.limit_in_bytes", limit);
                let _ = self.write("memory.swappiness", 0);
            }
            Version::V2 => {
                self.write("memory.max", limit)?;
                let _ = self.write("memory.swap.max", 0);
            }
        }
        Ok(())
    }

    /// Moves a process in. What it uses from now on is charged to the group.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.write("cgroup.procs", u64::from(pid))
    }

    /// How often the kernel killed a process because the group was full.
    pub fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        // Without O_CREAT: a missing control file is ENOENT, as it should be.
        let mut control = fs::OpenOptions::new().write(true).open(self.dir.join(file))?;
        io::Write::write_all(&mut control, value.to_string().as_bytes())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was just reaped may hold the group for a moment longer.
        for _ in 0..200 {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_hybrid_mount_uses_the_hierarchy_that_has_memory() {
        let found = candidates(V1, "4:memory:/a/b\n0::/\n").unwrap();
        assert_eq!(found, [Parent { version: Version::V1, dir: "/sys/fs/cgroup/memory/a/b".into() }]);
        let found = candidates(V1, "5:cpu,cpuacct:/\n0::/x\n").unwrap();
        let dirs: Vec<_> = found.iter().map(|parent| parent.dir.to_str().unwrap()).collect();
        assert_eq!(dirs, ["/sys/fs/cgroup/unified/x", "/sys/fs/cgroup/unified"]);
    }

    #[test]
    fn v2_tries_the_ancestors_up_to_the_mount() {
        let found = candidates(V2, "0::/user.slice/app.slice/run.scope\n").unwrap();
        let dirs: Vec<_> = found.iter().map(|parent| parent.dir.to_str().unwrap()).collect();
        assert_eq!(
            dirs,
            [
                "/sys/fs/cgroup/user.slice/app.slice/run.scope",
                "/sys/fs/cgroup/user.slice/app.slice",
                "/sys/fs/cgroup/user.slice",
                "/sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount_point() {
        let mounts = "9 8 0:5 /docker/77 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = candidates(mounts, "4:memory:/docker/77\n").unwrap();
        assert_eq!(found[0].dir, Path::new("/sys/fs/cgroup/memory"));
        let found = candidates(V2, "0::/../elsewhere\n").unwrap();
        assert_eq!(found[0].dir, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn says_what_is_missing() {
        assert!(candidates("", "4:memory:/\n").unwrap_err().contains("not mounted"));
        assert!(candidates("", "0::/\n").unwrap_err().contains("no cgroup file system"));
        assert!(candidates(V2, "").unwrap_err().contains("no cgroups"));
    }

    /// What cgroup-v2.rst says that a memory group has, in a folder: this machine's kernel may have no memory controller there.
    fn fake_v2(dir: &Path) -> Group {
        fs::create_dir(dir).unwrap();
        for file in ["cgroup.procs", "memory.max", "memory.swap.max"] {
            fs::write(dir.join(file), "").unwrap();
        }
        let events = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n";
        fs::write(dir.join("memory.events"), events).unwrap();
        Group { version: Version::V2, dir: dir.to_owned() }
    }

    #[test]
    fn v2_takes_the_nearest_ancestor_that_passes_memory_on_and_lets_groups_be_made() {
        let tree = tempfile::tempdir().unwrap();
        let own = tree.path().join("user.slice/app.slice/run.scope");
        fs::create_dir_all(&own).unwrap();
        let controls = |dir: &str, text: &str| {
            fs::write(tree.path().join(dir).join("cgroup.subtree_control"), text).unwrap();
        };
        controls("user.slice/app.slice/run.scope", "");
        controls("user.slice/app.slice", "cpu pids\n");
        controls("user.slice", "cpu memory pids\n");
        controls("", "cpu memory pids\n");
        let mounts = format!("30 23 0:26 / {} rw - cgroup2 cgroup2 rw\n", tree.path().display());
        let candidates = || candidates(&mounts, "0::/user.slice/app.slice/run.scope\n").unwrap();
        let found = first_usable(candidates(), |_| Ok(())).unwrap();
        assert_eq!(found, Parent { version: Version::V2, dir: tree.path().join("user.slice") });
        let not_delegated = |parent: &Parent| match parent.dir == *tree.path() {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        };
        assert_eq!(first_usable(candidates(), not_delegated).unwrap().dir, tree.path());
        let why = first_usable(candidates(), |_| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(why.contains(&tree.path().display().to_string()) && why.contains("systemd-run"), "{why}");
        for dir in ["user.slice", ""] {
            controls(dir, "cpu\n");
        }
        let why = first_usable(candidates(), |_| Ok(())).unwrap_err();
        assert!(why.contains("run.scope does not pass the memory controller on"), "{why}");
        // A real group without the controller has no memory.max: that is found, and the group is not left behind.
        assert!(Group::create(&Parent { version: Version::V2, dir: own.clone() }, 1 << 20).is_err());
        assert!(fs::read_dir(&own).unwrap().all(|entry| entry.unwrap().path().is_file()));
    }

    #[test]
    fn a_v2_group_is_limited_joined_and_asked_by_its_own_files() {
        let tree = tempfile::tempdir().unwrap();
        let group = fake_v2(&tree.path().join("group"));
        let read = |file: &str| fs::read_to_string(group.dir.join(file)).unwrap();
        group.limit(64 << 20).unwrap();
        assert_eq!((read("memory.max"), read("memory.swap.max")), ("67108864".to_owned(), "0".to_owned()));
        group.add(4711).unwrap();
        assert_eq!(read("cgroup.procs"), "4711");
        assert_eq!(group.oom_kills(), 2, "neither oom nor oom_group_kill");
    }

    #[test]
    fn usage_is_told_by_the_files_of_either_version() {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(tree.path().join(name), text).unwrap();
        let usage = |version| usage_of(&Parent { version, dir: tree.path().to_owned() });
        assert!(usage(Version::V1).unwrap_err().contains("memory.usage_in_bytes"));
        write("memory.usage_in_bytes", "4096\n");
        write("memory.max_usage_in_bytes", "8192\n");
        assert_eq!(usage(Version::V1), Ok(Usage { now: 4096, most: 8192 }));
        write("memory.current", "1\n");
        write("memory.peak", "max\n");
        assert!(usage(Version::V2).unwrap_err().contains("no number"));
    }

    #[test]
    fn a_group_is_removed_when_dropped() {
        // Where no group can be made, `find` says so; that is covered by `compare` itself.
        let Ok(parent) = find() else { return };
        let group = Group::create(&parent, 64 << 20).unwrap();
        let dir = group.dir.clone();
        assert!(dir.is_dir());
        assert_eq!(group.oom_kills(), 0);
        drop(group);
        assert!(!dir.exists());
    }
}
