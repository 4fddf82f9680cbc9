//! What a random page of a cold file costs in the kernel's mapping, and at least when another process serves the fault: `fault_rate FILE [PAGES
//! [ROUNDS]]`. FILE should be several times larger than PAGES of 4 KiB, and its disk be idle.
//!
//! The server here does nothing but what no server can leave out: it reads the fault, reads the page from the file, stores it in the shared frames,
//! and shows it. It evicts nothing, checks nothing and keeps no books. So its time is a bound for `mapwright run` on the same machine. Both are
//! measured in turns, by a process with the disk's read-ahead off (MADV_RANDOM, O_DIRECT); the medians are printed last.

#[allow(dead_code)] // of what tests need more is there
#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use common::{receive, send};
use mapwright_sys::PAGE_SIZE;
use mapwright_sys::buffer::Buffer;
use mapwright_sys::frames::SharedFrames;
use mapwright_sys::mapping::{FileMapping, KernelAdvice};
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::remote::{LentFrames, RemoteView};
use mapwright_sys::uffd::{Features, Uffd};
use mapwright_sys::window::Reader;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_setfl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes of memory that are touched before each measurement.
const WARM: usize = 1 << 30;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_client = arguments.first().is_some_and(|first| first == "--client");
    arguments.drain(..usize::from(is_client));
    let path = arguments.first().ok_or("usage: fault_rate FILE [PAGES [ROUNDS]]")?;
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (count, rounds) = (number(1, 10_000)?, number(2, 7)?);
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE;
    if pages < 2 * count {
        return Err(format!("the file has {pages} pages: name a larger one, or fewer than {count}").into());
    }
    if is_client {
        return touch_served(pages, count);
    }
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        fadvise(&file, 0, None, Advice::DontNeed)?;
        warm_memory();
        took[0].push(touch_mapped(&file, &places(pages, count))?);
        fadvise(&file, 0, None, Advice::DontNeed)?;
        warm_memory();
        took[1].push(serve(path, pages, count)?);
        println!(
            "round {round}: the kernel {:.1} us a page, served {:.1}",
            took[0][round as usize], took[1][round as usize]
        );
    }
    let [kernel, served] = took.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    println!(
        "medians: the kernel {kernel:.1} us a page, served {served:.1}: {:.2} of the kernel's speed",
        kernel / served
    );
    Ok(())
}

/// Touches memory, so that a host that hands it over lazily has done so for what comes next.
fn warm_memory() {
    let mut memory = vec![0u8; WARM];
    memory.chunks_mut(PAGE_SIZE).for_each(|page| page[0] = 1);
    std::hint::black_box(&memory);
}

/// Pages in no order, none twice.
fn places(pages: u64, count: u64) -> Vec<u64> {
    let (mut random, mut seen) = (0x9e37_79b9_7f4a_7c15_u64, HashSet::new());
    let draws = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % pages
    });
    draws.filter(|page| seen.insert(*page)).take(count as usize).collect()
}

/// Touches pages one after the other; microseconds for each.
fn touch(places: &[u64], byte: impl Fn(u64) -> u8) -> f64 {
    let start = Instant::now();
    let sum = places.iter().fold(0u8, |sum, page| sum.wrapping_add(byte(page * PAGE)));
    std::hint::black_box(sum);
    start.elapsed().as_secs_f64() * 1e6 / places.len() as f64
}

fn touch_mapped(file: &File, places: &[u64]) -> Outcome<f64> {
    let len = file.metadata()?.len();
    let mapping = Arc::new(FileMapping::new(file.as_fd(), len, len, false)?);
    mapping.advise(0..len, KernelAdvice::Random)?;
    let reader = Reader::claim(mapping).ok_or("a mapping is claimed once")?;
    Ok(touch(places, |at| reader.slice(false, at as usize..at as usize + 1)[0]))
}

/// The client: touches pages of the frames that the server on its standard input lends it.
fn touch_served(pages: u64, count: u64) -> Outcome<()> {
    let server: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let uffd =
        Arc::new(Uffd::open(Features::MISSING_SHMEM.with(Features::MINOR_SHMEM).with(Features::POISON))?);
    let frames =
        receive(&server).and_then(|(_, mut descriptors)| descriptors.pop()).ok_or("no frames came")?;
    let view = Arc::new(LentFrames::new(frames, pages * PAGE, false, Arc::clone(&uffd))?);
    send(&server, view.address(false)? as u64, &[uffd.as_fd()]);
    receive(&server).ok_or("the server is gone")?;
    let reader = Reader::claim(view).ok_or("a view is claimed once")?;
    let took = touch(&places(pages, count), |at| reader.slice(false, at as usize..at as usize + 1)[0]);
    send(&server, took.to_bits(), &[]);
    Ok(())
}

/// Starts a client and serves its faults; microseconds that each took, as the client saw it.
fn serve(path: &str, pages: u64, count: u64) -> Outcome<f64> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let own =
        Arc::new(Uffd::open(Features::MISSING_SHMEM.with(Features::MINOR_SHMEM).with(Features::POISON))?);
    let frames = SharedFrames::new(pages * PAGE, false, own, Arc::new(Pagemap::open()?))?;
    let (socket, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--client", path, &count.to_string()]).stdin(theirs);
    let mut client = command.spawn()?;
    drop(command); // and with it the client's end
    send(&socket, 0, &[frames.lend()?.as_fd()]);
    let (address, mut descriptors) = receive(&socket).ok_or("the client is gone")?;
    let uffd = Arc::new(Uffd::received(descriptors.pop().ok_or("no userfaultfd came")?)?);
    let view = RemoteView::new(Arc::clone(&uffd), address as usize, pages * PAGE, false)?;
    fcntl_setfl(&*uffd, OFlags::empty())?; // one call waits for a fault and reads it
    let (mut buffer, mut touches) = (Buffer::zeroed(PAGE_SIZE), Vec::new());
    send(&socket, 0, &[]);
    for _ in 0..count {
        uffd.wait_faults(&mut touches)?;
        for touch in touches.drain(..) {
            let at = view.offset_of(touch.address).ok_or("a fault outside of the view")? / PAGE * PAGE;
            file.read_exact_at(&mut buffer, at)?;
            frames.store(at, &buffer)?;
            view.map(at..at + PAGE)?;
        }
    }
    let (took, _) = receive(&socket).ok_or("the client is gone")?;
    client.wait()?;
    Ok(f64::from_bits(took))
}
