//! fio, where it is installed: what others take for the speed of a disk.

use std::process::Command;

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::PAGE;
use serde_json::Value;

use crate::task::{Measured, Task};

/// Has fio read `count` random pages, `task.batch` in flight. Its own pages: there is no checksum to compare.
pub fn read(task: &Task, count: u64) -> Result<Measured> {
    let output = Command::new("fio")
        .args(["--name=pages", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--readonly"])
        .args(["--norandommap", "--allow_file_create=0", "--output-format=json"])
        .arg(format!("--filename={}", task.path.display()))
        .arg(format!("--size={}", task.len))
        .arg(format!("--io_size={}", count * PAGE))
        .arg(format!("--iodepth={}", task.batch))
        .output()
        .map_err(|error| Failure::Unsupported(format!("fio: {error}; install fio to see its figure")))?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::Unsupported(format!("fio gave no report: {error}")))?;
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let (ops, seconds) = (number(&job["read"]["total_ios"]), number(&job["read"]["runtime"]) / 1000.0);
    if ops == 0.0 || seconds == 0.0 {
        return Err(Failure::Unsupported(format!(
            "fio read nothing: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    let percent = number(&job["usr_cpu"]) + number(&job["sys_cpu"]);
    let percentile = |name: &str| job["read"]["clat_ns"]["percentile"][name].as_f64();
    Ok(Measured {
        ops: ops as u64,
        bytes: ops as u64 * PAGE,
        seconds,
        cpu_seconds: percent / 100.0 * seconds,
        p50_ns: percentile("50.000000"),
        p99_ns: percentile("99.000000"),
        ..Measured::default()
    })
}
