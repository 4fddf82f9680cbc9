//! A file that is mapped for writing, and what goes through its only descriptor meanwhile: one process for each call, all of them under one `run`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::{Ran, compile, folder, mapwright, noise, remove_what_is_left_of, serves, text};

const LEN: usize = 2 << 20;
/// Calls that write what was stored to the file, and leave the map served.
const SYNCS: [&str; 5] = ["by_fsync", "by_fdatasync", "by_sync_file_range", "by_sync", "by_syncfs"];
/// What is none of the file's.
const BESIDE: [&str; 3] = ["by_nothing", "beside_a_writer", "beside_programs"];
/// Where the kernel has the map from the beginning: somebody else has the descriptor, or a stream.
const NEVER_SERVED: [&str; 5] =
    ["by_fileno", "by_fileno_unlocked", "by_recvmsg", "by_recvmmsg", "by_pidfd_getfd"];

fn program(flags: &[&str]) -> Option<String> {
    let name = if flags.is_empty() { "descriptors" } else { "descriptors-by-syscall" };
    compile(name, "descriptors.c", flags).filter(|_| serves())
}

/// Runs all that the program can do, each on a file of its own, without `run` and with it.
#[track_caller]
fn each(program: &str) {
    let list = text(&Command::new(program).arg("list").output().unwrap().stdout);
    assert!(list.lines().count() > 40, "{list}");
    let script = list.lines().fold(String::new(), |mut script, what| {
        writeln!(script, "echo {what} `{program} {what} file-{what} 2>&1`").unwrap();
        script
    });
    let right: String = list.lines().map(|what| format!("{what} right\n")).collect();
    let dir = folder();
    let prepare = || {
        for (seed, what) in list.lines().enumerate() {
            std::fs::write(dir.path().join(format!("file-{what}")), noise(seed as u64, LEN)).unwrap();
        }
    };
    prepare();
    let control = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    assert_eq!(text(&control.stdout), right, "without run: {}", text(&control.stderr));
    prepare();
    let ran = Ran::with(dir.path(), &["--limit", "8MiB"], &["sh", "-c", &script]);
    assert_eq!(text(&ran.output.stdout), right, "{}", text(&ran.output.stderr));
    // The program ends when all is as it should be; that it was given back says that the call itself was noticed.
    for what in list.lines() {
        let file = ran.file(&format!("/file-{what}"));
        let given_back = file["given_back"].as_object().unwrap().values().filter_map(|count| count.as_u64());
        let is_served = !NEVER_SERVED.contains(&what);
        let is_left = is_served && !BESIDE.contains(&what) && !SYNCS.contains(&what);
        assert_eq!(
            (file["maps"].as_u64(), given_back.sum::<u64>()),
            (Some(u64::from(is_served)), u64::from(is_left)),
            "{what}: {file:#}"
        );
    }
}

#[test]
fn what_goes_by_the_descriptor_and_by_the_map_is_the_same() {
    let Some(program) = program(&[]) else { return };
    each(&program);
}

#[test]
fn what_goes_by_numbers_of_system_calls_is_the_same() {
    let Some(program) = program(&["-DBY_SYSCALL"]) else { return };
    each(&program);
}

/// A byte that the program stores.
fn stored(at: usize) -> u8 {
    ((at as u64).wrapping_mul(2_654_435_761) >> 13).wrapping_add(at as u64) as u8
}

/// Neither the server nor the program comes to write anything after the call.
#[test]
fn what_was_synced_is_in_the_file_whoever_dies() {
    for flags in [&[][..], &["-DBY_SYSCALL"]] {
        let Some(program) = program(flags) else { return };
        for what in SYNCS {
            let dir = folder();
            let file = dir.path().join("file");
            std::fs::write(&file, noise(0, LEN)).unwrap();
            let mut run = mapwright(dir.path(), &["run", "--", &program, what, "file"]);
            run.env("HOLD", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut run = run.spawn().unwrap();
            let (input, mut said) = (run.stdin.take(), String::new());
            let mut from = BufReader::new(run.stdout.take().unwrap());
            from.read_line(&mut said).unwrap();
            run.kill().unwrap();
            run.wait().unwrap();
            remove_what_is_left_of(run.id());
            drop(input);
            from.read_to_string(&mut said).unwrap(); // until the program ends
            assert_eq!(said, "synced\n", "{what} {flags:?}");
            let bytes = std::fs::read(&file).unwrap();
            for at in (0..290).step_by(3).flat_map(|page| page * 4096 + 100..page * 4096 + 116) {
                assert_eq!(bytes[at], stored(at), "{what} {flags:?}: at {at}");
            }
        }
    }
}

/// The shim has functions of liburing and libaio, whose own it must find wherever they are.
#[test]
fn a_library_that_one_object_alone_has_loaded_is_found() {
    let object = |name, flags: &[&str]| compile(name, "plugin.c", &[&["-shared", "-fPIC"], flags].concat());
    let Some(library) = object("libplain.so", &["-DLIBRARY"]) else { return };
    let Some(plugin) = object("plugin.so", &["-DPLUGIN", "-Wl,--no-as-needed", &library]) else { return };
    let Some(program) = compile("plugin", "plugin.c", &["-ldl"]) else { return };
    let control = Command::new(&program).arg(&plugin).output().unwrap();
    let ran = mapwright(folder().path(), &["run", "--", &program, &plugin]).output().unwrap();
    for output in [control, ran] {
        assert_eq!(text(&output.stdout), "512\n", "{}", text(&output.stderr));
    }
}

/// A program that has nothing to do with maps, among whose calls are all kinds of those that are looked at.
#[test]
fn a_shell_and_its_children_do_as_without() {
    if !serves() {
        return;
    }
    let script = "printf 'a\\nb\\n' > x; cat < x | tee y | wc -l; (read line; echo $line; cat) < x; exec 5<> x; echo c >&5; \
        cat y x; cp x z; cmp x z && sync x && echo done; echo `sh -c 'echo $0; exit 3' sub; echo $?`";
    let (apart, dir) = (folder(), folder());
    let control = Command::new("sh").args(["-c", script]).current_dir(apart.path()).output().unwrap();
    let ran = Ran::with(dir.path(), &[], &["sh", "-c", script]);
    assert_eq!(text(&ran.output.stdout), text(&control.stdout), "{}", text(&ran.output.stderr));
    assert!(text(&control.stdout).contains("done"), "{}", text(&control.stderr));
}
