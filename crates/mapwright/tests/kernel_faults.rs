//! Kernel mappings whose pages can't be had: truncated under them, on a device that fails, on a full disk. Errors are values, and
//! the process lives; a SIGBUS that is not ours is not taken.
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{PAGE, child, contents, dies_by_sigbus, file_of, role, run, run_ok, scratch};
use mapwright::mmap::{Advice, MmapOptions, MmapRaw};
use mapwright::{Change, Error, MapOptions, Strategy};

const PAGES: usize = 256;

fn set_len(path: &Path, pages: usize) {
    File::options().write(true).open(path).unwrap().set_len((pages * PAGE) as u64).unwrap();
}

/// Cuts a file and restores it, again and again, while 16 threads do `work` on all of it; how often each way.
fn cut_under_16_threads(
    work: impl Fn(usize) -> Result<(), Error> + Sync,
    path: &Path,
    bytes: &[u8],
) -> [usize; 2] {
    let (done, outcomes) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let since = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (done, outcomes, work) = (&done, &outcomes, &work);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let outcome = work(thread);
                    if let Err(error) = &outcome {
                        let is_cut = matches!(error, Error::Changed { change: Change::Truncated { was, .. }, .. } if *was == (PAGES * PAGE) as u64);
                        // The file was restored before anybody could ask how long it is.
                        assert!(is_cut || error.errno() == Some(libc::EIO), "{error:?}");
                    }
                    outcomes[usize::from(outcome.is_err())].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        while since.elapsed() < Duration::from_secs(60) {
            set_len(path, 2);
            let failed = outcomes[1].load(Ordering::SeqCst);
            while outcomes[1].load(Ordering::SeqCst) == failed && since.elapsed() < Duration::from_secs(60) {
                std::thread::yield_now();
            }
            std::fs::write(path, bytes).unwrap();
            let succeeded = outcomes[0].load(Ordering::SeqCst);
            while outcomes[0].load(Ordering::SeqCst) < succeeded + 16
                && since.elapsed() < Duration::from_secs(60)
            {
                std::thread::yield_now();
            }
            if failed > 200 {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    outcomes.map(AtomicUsize::into_inner)
}

#[test]
fn truncation_under_copies_with_16_threads() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGES * PAGE);
    let map = MmapOptions::new().open(&path).unwrap();
    let [whole, cut] = cut_under_16_threads(
        |thread| {
            let mut into = vec![0; PAGES * PAGE - thread];
            map.read_at(thread, &mut into)?;
            // The file may have been written in between, but only with these bytes: what is read is they, or the zeros that a
            // file has while it is written anew.
            assert!(into.iter().zip(&bytes[thread..]).all(|(is, was)| is == was || *is == 0));
            Ok(())
        },
        &path,
        &bytes,
    );
    assert!(whole > 16 && cut > 200, "{whole} whole, {cut} cut");
}

#[test]
fn truncation_under_checked_scopes_of_the_kernel_strategy_with_16_threads() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGES * PAGE);
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    let [whole, cut] = cut_under_16_threads(
        |_| map.checked(|view| view.iter().map(|byte| u64::from(*byte)).sum::<u64>()).map(drop),
        &path,
        &bytes,
    );
    assert!(whole > 16 && cut > 200, "{whole} whole, {cut} cut");
    assert!(map.checked(|view| view == &bytes[..]).unwrap(), "and all is as it was");
}

#[test]
fn a_copy_stops_where_the_page_is_missing_and_says_where() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 8 * PAGE);
    let opened = MmapOptions::new().offset(100).open_mut(&path).unwrap();
    let lent =
        MmapOptions::new().map_raw(File::options().read(true).write(true).open(&path).unwrap()).unwrap();
    set_len(&path, 3);
    let mut into = vec![0; 8 * PAGE - 100];
    let error = opened.read_at(0, &mut into).unwrap_err();
    let change = Change::Truncated { was: 8 * PAGE as u64, now: 3 * PAGE as u64 };
    let Error::Changed { path: name, offset, change: told } = &error else { panic!("{error:?}") };
    assert_eq!((name.as_str(), *told), (path.to_str().unwrap(), change));
    assert!((3 * PAGE as u64 - 16..=3 * PAGE as u64).contains(offset), "{offset}");
    assert!(into[..3 * PAGE - 100] == bytes[100..3 * PAGE], "what was there was copied");
    assert!(matches!(opened.write_at(5 * PAGE, b"x"), Err(Error::Changed { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * PAGE as u64, "not extended");
    let error = lent.read_at(7 * PAGE + 1, &mut [0; 3]).unwrap_err();
    assert!(
        matches!(&error, Error::Io { operation: "read", offset, .. } if *offset == (7 * PAGE + 1) as u64),
        "{error:?}"
    );
    assert_eq!(error.errno(), Some(libc::EFAULT));
    if Advice::PopulateRead.is_supported() {
        assert_eq!(lent.advise(Advice::PopulateRead).unwrap_err().errno(), Some(libc::EFAULT));
    }
    opened.read_at(0, &mut into[..PAGE]).unwrap();
    set_len(&path, 8);
    assert!(opened.to_vec(3 * PAGE..).unwrap().iter().all(|byte| *byte == 0), "it heals");
}

/// A loop device, detached in the end.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let output =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_that_fails_is_an_error() {
    if !common::require_root() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 64 * PAGE);
    let Some(device) = Loop::new(&path) else { return common::skip("no loop device can be made here") };
    let map = MmapOptions::new().open(&device.0).unwrap();
    assert_eq!(map.len(), 64 * PAGE, "a block device knows its length");
    map.advise(Advice::Random).unwrap();
    assert!(map.to_vec(..PAGE).unwrap() == bytes[..PAGE]);
    set_len(&path, 1); // the device keeps its size, and fails
    let error = map.read_at(63 * PAGE, &mut [0; 9]).unwrap_err();
    assert!(matches!(error, Error::Io { operation: "read", .. }), "{error:?}");
    assert_eq!(error.errno(), Some(libc::EIO));
}

#[test]
fn a_full_file_system_under_a_sparse_file_is_an_error() {
    common::on_a_small_file_system("a_full_file_system_under_a_sparse_file_is_an_error", |path| {
        let map = MmapOptions::new().open_mut(path).unwrap();
        let error = map.write_at(0, &vec![1; 4 << 20]).unwrap_err();
        assert!(matches!(error, Error::Io { operation: "write", .. }), "{error:?}");
        assert_eq!(map.to_vec(..PAGE).unwrap(), vec![1; PAGE]);
    });
}

#[test]
fn a_slice_made_by_promise_dies_by_sigbus_as_with_memmap2() {
    let this = "a_slice_made_by_promise_dies_by_sigbus_as_with_memmap2";
    if role().is_none() {
        dies_by_sigbus(child(this, "dies"));
        return;
    }
    use mapwright::mmap::{MapAssumed, Mmap};
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 8 * PAGE);
    let raw = MmapRaw::map_raw(File::options().read(true).write(true).open(&path).unwrap()).unwrap();
    // SAFETY: the promise is broken below on purpose; the process ends by it.
    let map = unsafe { Mmap::map(File::open(&path).unwrap()) }.unwrap();
    set_len(&path, 1);
    assert!(raw.read_at(5 * PAGE, &mut [0]).is_err(), "a copy comes back");
    std::fs::remove_dir_all(dir.path()).unwrap(); // this process will not come to its end
    assert_ne!(map[5 * PAGE], 0);
}

extern "C" fn exits_with_78(_: libc::c_int) {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(78) };
}

#[test]
fn a_handler_that_was_there_gets_what_is_not_ours() {
    let this = "a_handler_that_was_there_gets_what_is_not_ours";
    if role().is_none() {
        let output = run(child(this, "own"));
        assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    // SAFETY: the handler has the signature of one without SA_SIGINFO.
    unsafe { libc::signal(libc::SIGBUS, exits_with_78 as *const () as usize) };
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 8 * PAGE);
    let ours = MmapOptions::new().open(&path).unwrap();
    // SAFETY: nothing is read from it but what ends the process.
    let theirs = unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()) }.unwrap();
    set_len(&path, 1);
    assert!(ours.read_at(4 * PAGE, &mut [0]).is_err(), "ours is an error");
    // A copy between ours and theirs, which fails on their side: not ours to answer for.
    let whole = MmapOptions::new().len(8 * PAGE).map_anon_shared().unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap(); // this process will not come to its end
    let _ = whole.write_at(0, &theirs[..8 * PAGE]);
    unreachable!("the program's handler ends the process");
}

#[test]
fn a_file_that_can_not_be_asked_for_its_length_is_an_error() {
    let this = "a_file_that_can_not_be_asked_for_its_length_is_an_error";
    if role().is_none() {
        run_ok(child(this, "refused"));
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 8 * PAGE);
    let ours = MmapOptions::new().open(&path).unwrap();
    set_len(&path, 1);
    // What NFS says of a file that is gone; the calls are those by which a C library asks.
    let calls = [libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx];
    mapwright_sys::testing::refuse_system_calls(&calls, libc::ESTALE).unwrap();
    assert_eq!(ours.read_at(4 * PAGE, &mut [0]).unwrap_err().errno(), Some(libc::EIO));
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn counts(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn raise_sigbus() {
    // SAFETY: raise takes a number.
    unsafe { libc::raise(libc::SIGBUS) };
}

/// A page that can't be had is still an error.
fn copies_come_back(ours: &mapwright::mmap::MmapRawRead) {
    assert!(ours.read_at(4 * PAGE, &mut [0]).is_err());
}

#[test]
fn a_handler_that_steps_back_takes_ours_not_with_it() {
    let this = "a_handler_that_steps_back_takes_ours_not_with_it";
    if role().is_none() {
        let text = dies_by_sigbus(child(this, "sent"));
        assert!(text.contains("survived the first"), "{text}");
        return;
    }
    // Rust's own handler is there, which sets the default action and returns: one signal is survived, as without us.
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 8 * PAGE);
    let ours = MmapOptions::new().open(&path).unwrap();
    set_len(&path, 1);
    copies_come_back(&ours);
    raise_sigbus();
    copies_come_back(&ours);
    std::fs::remove_dir_all(dir.path()).unwrap(); // this process will not come to its end
    eprintln!("survived the first");
    raise_sigbus();
    unreachable!("the second does what it does by default");
}

#[test]
fn a_handler_for_one_signal_is_called_once() {
    let this = "a_handler_for_one_signal_is_called_once";
    if role().is_none() {
        let text = dies_by_sigbus(child(this, "once"));
        assert!(text.contains("handled 1"), "{text}");
        return;
    }
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = counts as *const () as usize;
    action.sa_flags = libc::SA_RESETHAND;
    // SAFETY: the handler has the signature of one without SA_SIGINFO.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) }, 0);
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 8 * PAGE);
    let ours = MmapOptions::new().open(&path).unwrap();
    set_len(&path, 1);
    raise_sigbus();
    copies_come_back(&ours);
    std::fs::remove_dir_all(dir.path()).unwrap(); // this process will not come to its end
    eprintln!("handled {}", HANDLED.load(Ordering::SeqCst));
    raise_sigbus();
    unreachable!("the second does what it does by default");
}

#[test]
fn copies_work_beside_faults_that_the_pager_serves_in_the_thread() {
    if !common::require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 100 * PAGE);
    let pager = common::pager(64 * PAGE as u64);
    for mode in common::MODES {
        let source = common::paged(&pager, mode).open(&path).unwrap();
        let target = MmapOptions::new().len(100 * PAGE).map_anon_shared().unwrap();
        target.write_at(0, &source).unwrap(); // faults of the source inside of the copy are served
        assert!(target.to_vec(..).unwrap() == bytes, "{mode:?}");
        assert!(bytes == contents(100 * PAGE));
    }
}
