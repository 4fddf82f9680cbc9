//! The facts about the machine that a reader of a comparison needs.

use serde::Serialize;

use crate::child::Enforcement;
use crate::device::Place;

/// Where a comparison ran.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name, release and architecture of the kernel.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// As the kernel names it.
    pub cpu_model: String,
    /// Main memory.
    pub memory_bytes: u64,
    /// The file that was read.
    pub file: String,
    /// Its length.
    pub file_bytes: u64,
    /// The file system it is on.
    pub file_system: String,
    /// The disk it is on, where one can be found.
    pub device: Option<String>,
    /// The kernel's read-ahead for that disk.
    pub device_read_ahead_kib: Option<u64>,
    /// Whether the kernel takes the disk for a spinning one.
    pub device_rotational: Option<bool>,
    /// The memory limit.
    pub limit_bytes: u64,
    /// Whether a cgroup holds every method to it.
    pub limit_enforced: bool,
    /// How.
    pub limit_enforcement: String,
}

impl Machine {
    /// Collects the facts. A device read-ahead that is set for the comparison is in force already.
    pub fn collect(file: &str, file_bytes: u64, place: &Place, limit_bytes: u64, held: &Enforcement) -> Self {
        let device = place.device.as_ref().ok();
        Self {
            kernel: kernel(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            cpu_model: first_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_bytes: memory_bytes("MemTotal").unwrap_or(0),
            file: file.to_owned(),
            file_bytes,
            file_system: place.file_system.clone(),
            device: device.map(|device| device.name.clone()),
            device_read_ahead_kib: device.and_then(crate::device::Device::read_ahead_kib),
            device_rotational: device.and_then(crate::device::Device::rotational),
            limit_bytes,
            limit_enforced: held.cgroup.is_ok(),
            limit_enforcement: held.describe(),
        }
    }
}

/// Name, release and architecture of the running kernel.
pub fn kernel() -> String {
    let name = rustix::system::uname();
    format!(
        "{} {} {}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    )
}

/// A line of /proc/meminfo, in bytes.
pub fn memory_bytes(name: &str) -> Option<u64> {
    first_value("/proc/meminfo", name)?.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The value of the first line `name: value` of a file.
pub fn first_value(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}
