//! How many random 4 KiB O_DIRECT reads a second one thread gets from a ring: `ring_rate FILE [SECONDS [DEPTH [BATCH]]]`.
//!
//! To compare, interleaved and several times, because a disk's rate wanders by some percent:
//! `fio --name=r --filename=FILE --rw=randread --bs=4k --direct=1 --ioengine=io_uring --iodepth=64 --norandommap --readonly
//! --time_based --runtime=2`. fio reads into the same 64 buffers again and again and never lets the queue run empty; a
//! batch fills as many buffers as it has reads, and drains at its end.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::buffer::Buffer;
use mapwright_sys::ring::Ring;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let path = arguments.first().ok_or("usage: ring_rate FILE [SECONDS [DEPTH [BATCH]]]")?;
    let (time, depth, batch) = (Duration::from_secs(number(1, 2)?), number(2, 64)?, number(3, 256)? as usize);

    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let pages = file.metadata()?.len() / PAGE_SIZE as u64;
    if pages == 0 {
        return Err("the file is shorter than a page".into());
    }
    let mut ring = Ring::new(depth as u32)?;
    let mut memory = Buffer::zeroed(PAGE_SIZE * batch);
    memory.fill(1); // the first touch of memory is not what is measured
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut offsets = vec![0; batch];
    let (mut reads, mut failed) = (0_u64, 0_u64);
    let start = Instant::now();
    while start.elapsed() < time {
        offsets.fill_with(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % pages * PAGE_SIZE as u64
        });
        let targets = offsets.iter().copied().zip(memory.chunks_exact_mut(PAGE_SIZE));
        ring.read_batch(file.as_fd(), targets, &mut |_, _, result| {
            reads += 1;
            failed += u64::from(!matches!(result, Ok(PAGE_SIZE)));
        });
    }
    println!("{:.0} reads/s, {failed} failed", reads as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
