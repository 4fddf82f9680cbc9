//! Users with few rights: what works without root is tried as such a user.

use std::path::Path;
use std::process::{Command, Output};

use super::common::{not_root, skip, text};
use super::{Ran, program, serves, write_file};

/// Runs `mapwright` as user nobody, who may open /dev/userfaultfd or not, with further rights. In a namespace of its own for that, so that
/// nothing of the machine is changed. `None` where that can't be had.
fn as_nobody(dir: &Path, device: bool, rights: &[&str], arguments: &[&str]) -> Option<Output> {
    const SCRIPT: &str =
        "set -e; if [ \"$1\" = yes ]; then mount --bind node /dev/userfaultfd; fi; shift; exec \"$@\"";
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let device = if device { "yes" } else { "no" };
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh", device]).args(nobody).args(rights).arg("./mapwright");
    command.args(arguments).current_dir(dir).env("TMPDIR", dir.join("tmp"));
    let output = command.output().map_err(|error| skip(&format!("there is no unshare: {error}"))).ok()?;
    let refused = text(&output.stderr);
    if refused.starts_with("unshare: ") || refused.starts_with("mount: ") {
        skip(&refused);
        return None;
    }
    Some(output)
}

#[test]
fn users_without_rights_are_served_what_they_may_be() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let Some(program) = program() else { return };
    if !serves() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return not_root("become another user");
    }
    // The build folder may be where nobody else may go.
    let dir = tempfile::tempdir().unwrap();
    let magic = rustix::fs::statfs(dir.path()).unwrap().f_type as u64;
    if magic != rustix::fs::statfs(env!("CARGO_TARGET_TMPDIR")).unwrap().f_type as u64 {
        return skip(
            "the folder for temporary files is on another file system than the build folder: set TMPDIR",
        );
    }
    let place = |name: &str| dir.path().join(name);
    std::fs::copy(env!("CARGO_BIN_EXE_mapwright"), place("mapwright")).unwrap();
    std::fs::copy(program, place("maps")).unwrap();
    std::fs::create_dir(place("tmp")).unwrap();
    for path in [dir.path(), &place("mapwright"), &place("maps"), &place("tmp")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["own", "others"] {
        write_file(&place(name));
    }
    for path in [place("own"), place("tmp")] {
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    let real = std::fs::metadata("/dev/userfaultfd").map(|found| found.rdev()).unwrap_or(0);
    let kind = rustix::fs::FileType::CharacterDevice;
    if let Err(error) = rustix::fs::mknodat(
        rustix::fs::CWD,
        place("node"),
        kind,
        rustix::fs::Mode::from_raw_mode(0o666),
        real,
    ) {
        return skip(&format!("no node can be made for /dev/userfaultfd: {error}"));
    }
    std::fs::set_permissions(place("node"), std::fs::Permissions::from_mode(0o666)).unwrap();

    let run = |device, rights: &[&str], name: &str| {
        let report = format!("--report={}", place("tmp").join("report.json").display());
        let output = as_nobody(
            dir.path(),
            device,
            rights,
            &["run", "--limit", "2MiB", &report, "--", "./maps", "whole", name],
        )?;
        assert_eq!(text(&output.stdout), "right\n", "{}", text(&output.stderr));
        let report = std::fs::read_to_string(place("tmp").join("report.json")).unwrap();
        Some(Ran { output, report: serde_json::from_str(&report).unwrap() })
    };
    let may_all = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
        .is_ok_and(|value| value.trim() == "1");
    // With nothing at all.
    let Some(ran) = run(false, &[], "own") else { return };
    if !may_all {
        assert!(
            ran.report["not_served"].as_str().unwrap().contains("does not serve system calls"),
            "{:#}",
            ran.report
        );
        let strict =
            as_nobody(dir.path(), false, &[], &["run", "--strict", "--", "./maps", "whole", "own"]).unwrap();
        assert_eq!((strict.status.code(), text(&strict.stdout).as_str()), (Some(1), ""));
        assert!(text(&strict.stderr).contains("mapwright doctor"), "{}", text(&strict.stderr));
        let doctor = text(&as_nobody(dir.path(), false, &[], &["doctor"]).unwrap().stdout);
        assert!(
            doctor.contains("does not serve system calls\n") && doctor.contains("programs: run as root, "),
            "{doctor}"
        );
    }
    // With the device.
    let Some(ran) = run(true, &[], "own") else { return };
    assert_eq!(ran.file("/own")["maps"], 1, "{:#}", ran.report);
    let Some(ran) = run(true, &[], "others") else { return };
    let file = ran.file("/others");
    assert!(file["maps"] == 0 && file["kernel"].to_string().contains("F_SETLEASE"), "{:#}", ran.report);
    let doctor = text(&as_nobody(dir.path(), true, &[], &["doctor"]).unwrap().stdout);
    assert!(
        doctor.contains("what they map of files is served")
            && doctor.contains("no CAP_LEASE")
            && doctor.contains("are on pages of 4 KiB: "),
        "{doctor}"
    );
    // And with the right to leases.
    let lease = ["--inh-caps=+lease", "--ambient-caps=+lease"];
    let Some(ran) = run(true, &lease, "others") else { return };
    assert_eq!(ran.file("/others")["maps"], 1, "{:#}", ran.report);
    let doctor = text(&as_nobody(dir.path(), true, &lease, &["doctor"]).unwrap().stdout);
    assert!(doctor.contains("are served too (CAP_LEASE)"), "{doctor}");
}
