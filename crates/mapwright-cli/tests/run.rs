//! `mapwright run` from outside: each program with it and, as the control, without; both must do the same.

mod common;
#[path = "run/copies.rs"]
mod copies;
#[path = "run/descriptors.rs"]
mod descriptors;
#[path = "run/large.rs"]
mod large;
#[path = "run/numbers.rs"]
mod numbers;
#[path = "run/scale.rs"]
mod scale;
#[path = "run/shared.rs"]
mod shared;
#[path = "run/users.rs"]
mod users;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{compile, expect, folder, mapwright, noise, not_root, other_tool, serves, text};
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Bytes of the file that programs map: more than the limit, and no whole pages.
const LEN: usize = 8 * MIB + 123;
const LIMIT: &str = "2MiB";

/// The program in C that maps files.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("maps", "maps.c", &[])).as_deref().map(Path::new)
}

/// A file whose bytes are all different from page to page.
fn write_file(path: &Path) {
    std::fs::write(path, noise(0, LEN)).unwrap();
}

struct Ran {
    output: Output,
    report: Value,
}

impl Ran {
    /// Runs a program with `mapwright run` and a report.
    fn with(dir: &Path, options: &[&str], program: &[&str]) -> Self {
        let _ = std::fs::remove_file(dir.join("report"));
        let fixed = ["run", "--json", "--report=report"];
        let limit: &[&str] = if options.contains(&"--limit") { &[] } else { &["--limit", LIMIT] };
        let arguments: Vec<&str> = [&fixed, limit, options, &["--"], program].concat();
        let output = mapwright(dir, &arguments).output().unwrap();
        let report = std::fs::read_to_string(dir.join("report"));
        let report = report.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
        Self { output, report: serde_json::from_str(&report).unwrap() }
    }

    /// What is said of the file called `name`.
    #[track_caller]
    fn file(&self, name: &str) -> &Value {
        let files = self.report["files"].as_array().unwrap();
        let found = files.iter().find(|file| file["path"].as_str().unwrap().ends_with(name));
        found.unwrap_or_else(|| panic!("{name}: {:#}", self.report))
    }

    #[track_caller]
    fn maps(&self) -> u64 {
        self.file("/file")["maps"].as_u64().unwrap()
    }

    #[track_caller]
    fn given_back(&self, why: &str) -> u64 {
        let file = self.file("/file");
        let counts = file["given_back"].as_object().unwrap();
        counts
            .iter()
            .filter(|(reason, _)| reason.contains(why))
            .map(|(_, count)| count.as_u64().unwrap())
            .sum()
    }
}

/// Runs the program in C without `run` and with it, on a new file each time; what it said of the file with it.
#[track_caller]
fn both(what: &str) -> Option<Ran> {
    both_of(program()?, what, &[])
}

/// The same, of another program and with other options.
#[track_caller]
fn both_of(program: &Path, what: &str, options: &[&str]) -> Option<Ran> {
    let program = program.to_str().unwrap();
    if !serves() {
        return None;
    }
    let dir = folder();
    let file = dir.path().join("file");
    write_file(&file);
    let control = Command::new(program).args([what, "file"]).current_dir(dir.path()).output().unwrap();
    let said = text(&control.stdout);
    assert_eq!((control.status.code(), said.as_str()), (Some(0), "right\n"), "{what} without run");
    let after = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    write_file(&file);
    let ran = Ran::with(dir.path(), options, &[program, what, "file"]);
    let (said, errors) = (text(&ran.output.stdout), text(&ran.output.stderr));
    assert_eq!(
        (ran.output.status.code(), said.as_str()),
        (Some(0), "right\n"),
        "{what}: {errors}{:#}",
        ran.report
    );
    assert_eq!(errors, "", "{what}");
    assert!(std::fs::read(&file).unwrap() == after, "{what}: the file is another than without run");
    assert_eq!(ran.report["exit_code"], 0);
    Some(ran)
}

#[test]
fn a_file_larger_than_the_limit_reads_as_it_is() {
    for what in ["whole", "private"] {
        let Some(ran) = both(what) else { return };
        assert_eq!(ran.maps(), 1, "{:#}", ran.report);
        let totals = &ran.report["totals"];
        let number = |name: &str| totals[name].as_u64().unwrap();
        assert!(
            number("read_bytes") >= LEN as u64 && number("evictions") > 0 && number("faults") > 0,
            "{totals}"
        );
        let file = ran.file("/file");
        assert_eq!(file["length"], LEN as u64);
        // One file and one process: what is said of them is what is said of all.
        let (pager, process) = (&file["pager"], &ran.report["processes"][0]);
        // But for what was under way when it ended.
        let same = |one: &Value, other: &Value, but: u64| {
            let apart = one.as_u64().unwrap().abs_diff(other.as_u64().unwrap());
            assert!(apart <= but, "{one}, {other}: {:#}", ran.report);
        };
        same(&pager["read_bytes"], &totals["read_bytes"], MIB as u64);
        same(&pager["evictions"], &totals["evictions"], 256);
        same(&pager["faults"]["count"], &totals["faults"], 8);
        same(&process["files"][0]["faults"]["count"], &pager["faults"]["count"], 8);
        assert_eq!(process["pid"], ran.report["programs"][0]["pid"]);
        let [mean, longest] =
            ["mean", "longest"].map(|name| pager["faults"][format!("{name}_microseconds")].as_f64().unwrap());
        assert!(mean > 0.0 && mean <= longest && longest < 60e6, "{pager}");
        assert!(ran.report["programs"][0]["path"].as_str().unwrap().ends_with("/maps"), "{:#}", ran.report);
    }
}

#[test]
fn a_program_finds_what_the_one_before_has_read() {
    let Some(program) = program().filter(|_| serves()) else { return };
    let dir = folder();
    write_file(&dir.path().join("file"));
    let twice = format!("for n in 1 2 3; do {} whole file || exit 1; done", program.display());
    let options = ["run", "--limit=64MiB", "--json", "--report=report", "--", "sh", "-c", &twice];
    let output = mapwright(dir.path(), &options).output().unwrap();
    assert_eq!(text(&output.stdout), "right\n".repeat(3), "{}", text(&output.stderr));
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("report")).unwrap()).unwrap();
    assert_eq!(report["files"][0]["maps"], 3, "{report:#}");
    let read = report["totals"]["read_bytes"].as_u64().unwrap();
    assert!((LEN as u64..LEN as u64 * 3 / 2).contains(&read), "{report:#}");
}

#[test]
fn parts_of_a_file_and_its_end_are_as_by_the_kernel() {
    let Some(ran) = both("window") else { return };
    assert_eq!(ran.maps(), 2, "{:#}", ran.report);
    both("end");
}

#[test]
fn children_have_the_kernels_maps_and_begin_anew() {
    let Some(ran) = both("fork") else { return };
    // Two of the parent's, and one of each child's own.
    assert_eq!(ran.maps(), 2 + 3, "{:#}", ran.report);
    assert_eq!(ran.file("/file")["processes"].as_array().unwrap().len(), 4);
    let processes = ran.report["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 4, "{:#}", ran.report);
    for process in processes {
        assert!(process["program"].as_str().unwrap().ends_with("/maps"), "{process}");
        assert!(process["files"][0]["faults"]["count"].as_u64().unwrap() > 0, "{process}");
    }
    let Some(ran) = both("exec") else { return };
    assert_eq!((ran.maps(), ran.report["programs"].as_array().unwrap().len()), (2, 2), "{:#}", ran.report);
}

#[test]
fn what_is_changed_of_a_map_makes_it_the_kernels() {
    for (what, why, at_least) in [
        ("protect", "mprotect(2)", 3),
        ("partial", "mremap(2)", 2),
        ("replace", "something else was mapped there", 2),
        ("advise", "madvise(2)", 1),
        ("threads", "mprotect(2)", 2),
    ] {
        let Some(ran) = both(what) else { return };
        assert!(ran.given_back(why) >= at_least, "{what}: {:#}", ran.report);
    }
}

const FOR_WRITING: &str = "opened it for writing";
const BUSY: &str = "open for writing, by this program or another";

#[test]
fn what_is_written_is_seen_in_maps() {
    for what in ["stream", "truncate", "changed", "without"] {
        let Some(ran) = both(what) else { return };
        assert!(ran.maps() >= 1 && ran.given_back(FOR_WRITING) == 1, "{what}: {:#}", ran.report);
    }
    for way in 0..8 {
        let Some(ran) = both(&format!("write{way}")) else { return };
        assert!(ran.maps() == 1 && ran.given_back(FOR_WRITING) == 1, "{way}: {:#}", ran.report);
        assert!(ran.file("/file")["kernel"].to_string().contains(BUSY), "{way}: {:#}", ran.report);
    }
    let Some(ran) = both("again") else { return };
    assert!(ran.maps() == 20 && ran.given_back(FOR_WRITING) == 20, "{:#}", ran.report);
}

#[test]
fn every_process_sees_at_once_what_another_writes() {
    let Some(ran) = both("processes") else { return };
    // Each of four children maps it before each of five rounds, when somebody may still be writing.
    assert!(ran.maps() >= 4 && ran.given_back(FOR_WRITING) >= 4, "{:#}", ran.report);
}

#[test]
fn a_file_that_somebody_may_write_is_the_kernels() {
    let Some(ran) = both("inherited") else { return };
    let file = ran.file("/file");
    assert!(file["maps"] == 0 && file["kernel"].to_string().contains(BUSY), "{:#}", ran.report);
    let Some(ran) = both("protect") else { return };
    assert!(ran.file("/file")["kernel"].to_string().contains(BUSY), "{:#}", ran.report);
}

/// A file of somebody else's, and no right to keep those waiting who write it.
#[test]
fn a_file_of_another_user_is_the_kernels_without_the_right_to_a_lease() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return not_root("give a file to another user");
    }
    let dir = folder();
    let file = dir.path().join("file");
    write_file(&file);
    let limited = ["--bounding-set", "-lease", "--inh-caps", "-lease"];
    let Some(_) = other_tool(dir.path(), "setpriv", &[&limited[..], &["true"]].concat()) else { return };
    for (owner, is_served) in [(0, true), (65534, false)] {
        std::os::unix::fs::chown(&file, Some(owner), None).unwrap();
        let mut run = Command::new("setpriv");
        run.args(limited).args([env!("CARGO_BIN_EXE_mapwright"), "run", "--json", "--report=report", "--"]);
        let output = run.args([program, "whole", "file"]).current_dir(dir.path()).output().unwrap();
        assert_eq!(text(&output.stdout), "right\n", "{}", text(&output.stderr));
        let report = std::fs::read_to_string(dir.path().join("report")).unwrap();
        let ran = Ran { output, report: serde_json::from_str(&report).unwrap() };
        let file = ran.file("/file");
        assert_eq!(file["maps"], u64::from(is_served), "{:#}", ran.report);
        assert_eq!(file["kernel"].to_string().contains("F_SETLEASE"), !is_served, "{:#}", ran.report);
    }
}

#[test]
fn system_calls_take_what_is_mapped() {
    let Some(ran) = both("calls") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{:#}", ran.report);
}

#[test]
fn closing_all_descriptors_closes_none_of_the_shims() {
    let Some(ran) = both("close") else { return };
    assert_eq!(ran.maps(), 2, "{:#}", ran.report);
    assert_eq!(ran.given_back(""), 0, "{:#}", ran.report);
}

#[test]
fn threads_can_be_cancelled_in_calls_that_the_shim_replaces() {
    let Some(program) = program() else { return };
    let dir = folder();
    for arguments in [vec![], vec![env!("CARGO_BIN_EXE_mapwright"), "run", "--"]] {
        let mut command: Vec<&str> = arguments;
        command.extend([program.to_str().unwrap(), "cancel", "none"]);
        let output = Command::new(command[0]).args(&command[1..]).current_dir(dir.path()).output().unwrap();
        assert_eq!(text(&output.stdout), "right\n", "{command:?}: {}", text(&output.stderr));
    }
}

#[test]
fn exit_codes_and_signals_are_the_programs() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    let dir = folder();
    for (what, value) in
        [("exit", "0"), ("exit", "7"), ("exit", "255"), ("kill", "15"), ("kill", "9"), ("kill", "6")]
    {
        let control = Command::new(program).args([what, value]).output().unwrap().status;
        let ran = mapwright(dir.path(), &["run", "--", program, what, value]).output().unwrap();
        assert_eq!(
            (ran.status.code(), ran.status.signal()),
            (control.code(), control.signal()),
            "{what} {value}: {}",
            text(&ran.stderr)
        );
    }
    let (_, stderr) = expect(dir.path(), &["run", "--", "no-such-program-here"], 127);
    assert!(stderr.contains("no-such-program-here"), "{stderr}");
    std::fs::write(dir.path().join("text"), "no program").unwrap();
    expect(dir.path(), &["run", "--", "./text"], 126);
    expect(dir.path(), &["run"], 2);
    expect(dir.path(), &["run", "--block", "5000", "--", "true"], 2);
    expect(dir.path(), &["run", "--json", "--", "true"], 2);
}

#[test]
fn signals_are_passed_on_and_standard_input_is_the_programs() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    let dir = folder();
    let mut run =
        mapwright(dir.path(), &["run", "--", program, "wait", "x"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(42));
    std::fs::write(dir.path().join("input"), "some text").unwrap();
    let input = std::fs::File::open(dir.path().join("input")).unwrap();
    let output = mapwright(dir.path(), &["run", "--", "cat"]).stdin(input).output().unwrap();
    assert_eq!(text(&output.stdout), "some text");
}

/// Who writes a file does not wait for a server that is stopped, and the program sees what was written.
#[test]
fn a_run_that_is_stopped_keeps_nobody_waiting() {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    let dir = folder();
    let file = dir.path().join("file");
    write_file(&file);
    let mut run = mapwright(dir.path(), &["run", "--", program, "standby", "file"]);
    // Of a group of its own: in one that nobody can continue the signal stops nobody.
    let mut run = run.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut from = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = Pid::from_child(&run);
    kill_process(pid, Signal::TSTP).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped(), "{status:?}");
    let since = Instant::now();
    let writer = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    let waited = since.elapsed();
    writer.write_all_at(b"meanwhile", MIB as u64).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    run.stdin.take().unwrap().write_all(b"\n").unwrap();
    line.clear();
    from.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), run.wait().unwrap().code()), ("right\n", Some(0)));
    assert!(waited < Duration::from_secs(20), "the writer waited {waited:?} for a server that was stopped");
}

#[test]
fn nothing_is_left_behind() {
    if !serves() {
        return;
    }
    let dir = folder();
    let run = mapwright(dir.path(), &["run", "--", "true"]).env("TMPDIR", dir.path()).status().unwrap();
    assert!(run.success());
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn other_preloads_are_kept() {
    if !serves() {
        return;
    }
    let dir = folder();
    let mut run = mapwright(dir.path(), &["run", "--", "sh", "-c", "echo $LD_PRELOAD"]);
    let output = run.env("LD_PRELOAD", "libc.so.6").output().unwrap();
    let preload = text(&output.stdout);
    assert!(
        preload.starts_with("libc.so.6:/proc/") && preload.contains("/fd/"),
        "{preload}{}",
        text(&output.stderr)
    );
}

#[test]
fn static_programs_run_on_the_kernels_mmap_unless_told_to_be_strict() {
    let Some(program) = compile("maps-static", "maps.c", &["-static"]) else { return };
    let program = program.as_str();
    let dir = folder();
    write_file(&dir.path().join("file"));
    let ran = Ran::with(dir.path(), &[], &[program, "whole", "file"]);
    assert_eq!((ran.output.status.code(), text(&ran.output.stdout).as_str()), (Some(0), "right\n"));
    assert!(ran.report["not_served"].as_str().unwrap().contains("static program"), "{:#}", ran.report);
    let (stdout, stderr) = expect(dir.path(), &["run", "--strict", "--", program, "whole", "file"], 1);
    assert!(stdout.is_empty() && stderr.contains("static program"), "{stdout}{stderr}");
    // A script is what its interpreter is.
    let script = dir.path().join("script");
    std::fs::write(&script, format!("#!{program} exit\n")).unwrap();
    rustix::fs::chmod(&script, rustix::fs::Mode::RWXU).unwrap();
    expect(dir.path(), &["run", "--strict", "--", "./script"], 1);
}

#[test]
fn the_report_says_what_was_not_served_and_why() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    let dir = folder();
    write_file(&dir.path().join("file"));
    let ran = Ran::with(dir.path(), &[], &[program, "end", "file"]);
    let kernel = ran.file("/file")["kernel"].to_string();
    assert!(kernel.contains("more than reading"), "{kernel}");
    let output =
        mapwright(dir.path(), &["run", "--report", "--", program, "whole", "file"]).output().unwrap();
    let report = text(&output.stderr);
    for part in
        ["ended with exit code 0", "/file (8.0 MiB)", "###", "maps 1", "faults", "half within", "  process "]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    // As the file's name ends.
    for (name, start) in [("report.svg", "<svg "), ("report.json", "{"), ("report.txt", "mapwright run: ")] {
        let option = format!("--report={name}");
        expect(dir.path(), &["run", &option, "--", program, "whole", "file"], 0);
        let report = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(report.starts_with(start) && report.contains("/file"), "{name}: {report}");
    }
    // In memory, where nothing is to be gained.
    std::fs::write("/dev/shm/mapwright-run-test", vec![1; 2 * MIB]).unwrap();
    let ran = Ran::with(dir.path(), &[], &[program, "whole", "/dev/shm/mapwright-run-test"]);
    std::fs::remove_file("/dev/shm/mapwright-run-test").unwrap();
    let kernel = ran.file("/mapwright-run-test")["kernel"].to_string();
    assert!(kernel.contains("local disk") && ran.output.status.success(), "{kernel}");
}

/// The module mmap of the interpreter that is installed, if one is.
#[test]
fn python_maps_files() {
    const SCRIPT: &str = "\
import mmap, os, sys
def check(access):
    with open('file', 'rb') as file:
        data = file.read()
        with mmap.mmap(file.fileno(), 0, access=access) as m:
            assert len(m) == len(data) and m[:] == data
            assert m[5 << 20:(5 << 20) + 9] == data[5 << 20:(5 << 20) + 9] and m[-1] == data[-1]
            assert m.find(data[3 << 20:(3 << 20) + 16]) == 3 << 20
            m.seek(1 << 20)
            assert m.read(100) == data[1 << 20:(1 << 20) + 100] and m.tell() == (1 << 20) + 100
            at, line = m.tell(), m.readline()
            assert line == data[at:m.tell()] and line.endswith(b'\\n')
            assert m[::4096] == data[::4096]
            if access == mmap.ACCESS_COPY:
                m[7] = 1
                assert m[7] == 1
            else:
                try:
                    m[7] = 1
                    raise SystemExit('a map for reading was written')
                except TypeError:
                    pass
        assert m.closed
        with mmap.mmap(file.fileno(), 2 << 20, access=access, offset=1 << 20) as m:
            assert m[:] == data[1 << 20:3 << 20]
check(mmap.ACCESS_READ)
check(mmap.ACCESS_COPY)
with open('file', 'r+b') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
    assert m[4 << 20] == m[4 << 20]
    file.seek(4 << 20)
    file.write(b'by a file object')
    file.flush()
    assert m[4 << 20:(4 << 20) + 16] == b'by a file object'
print('right', sys.version_info[0])
";
    let dir = folder();
    write_file(&dir.path().join("file"));
    std::fs::write(dir.path().join("script.py"), SCRIPT).unwrap();
    let Some(control) = other_tool(dir.path(), "python3", &["script.py"]) else { return };
    if !serves() {
        return;
    }
    write_file(&dir.path().join("file"));
    let ran = Ran::with(dir.path(), &[], &["python3", "script.py"]);
    assert_eq!(text(&ran.output.stdout), control, "{}", text(&ran.output.stderr));
    assert!(ran.maps() >= 2, "{:#}", ran.report);
    assert_eq!(ran.given_back("write(2)"), 1, "{:#}", ran.report);
}

#[test]
fn ripgrep_finds_the_same() {
    let dir = folder();
    let lines: String =
        (0..400_000u64).map(|n| format!("line {n} of many, {}\n", n * 7919 % 1_000_003)).collect();
    std::fs::write(dir.path().join("file"), lines).unwrap();
    let arguments = ["--mmap", "-c", "99[0-9]*7$", "file"];
    let Some(control) = other_tool(dir.path(), "rg", &arguments) else { return };
    if !serves() {
        return;
    }
    let ran = Ran::with(dir.path(), &[], &[&["rg"], &arguments[..]].concat());
    assert_eq!(text(&ran.output.stdout), control, "{}", text(&ran.output.stderr));
    assert_eq!(ran.maps(), 1, "{:#}", ran.report);
}

/// A server that is gone is nothing that the program notices.
#[test]
fn a_program_outlives_its_server() {
    if let Some(program) = program() {
        outlives_its_server(program);
    }
}

/// Kills the server when the program has looked at half of the file; the program says then what it finds.
#[track_caller]
fn outlives_its_server(program: &Path) {
    if !serves() {
        return;
    }
    let dir = folder();
    write_file(&dir.path().join("file"));
    let program = program.to_str().unwrap();
    let mut run = mapwright(dir.path(), &["run", "--limit", "2M", "--", program, "hold", "file"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut from = BufReader::new(run.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line
    };
    let half = line();
    run.kill().unwrap();
    run.wait().unwrap();
    remove_what_is_left_of(run.id());
    assert_eq!((half.as_str(), line().as_str()), ("half\n", "right\n"));
}

/// What a server that was killed could not take away itself.
fn remove_what_is_left_of(server: u32) {
    let own = format!("mapwright-run-{server}-");
    for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&own) {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}
