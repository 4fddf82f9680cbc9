//! The only unsafe code of this crate: reads through an io_uring, and what the crates that are compared ask of their users.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use memmap2::Mmap;

/// Takes what is mapped out of the page tables; it stays in the page cache.
pub fn unmap_pages(map: &Mmap) -> io::Result<()> {
    // SAFETY: the map is a shared mapping of a file: what is dropped is read from the page cache again, unchanged.
    unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }
}

/// O_DIRECT reads of whole pages into buffers of its own, many in flight.
pub struct Pages {
    ring: IoUring,
    file: File,
    buffers: Vec<Page>,
    /// Buffers that no read is in flight for.
    free: Vec<usize>,
}

/// A page, aligned as O_DIRECT wants it.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

impl Pages {
    /// Room for `depth` reads of the file at a time.
    pub fn new(file: File, depth: usize) -> io::Result<Self> {
        let ring = IoUring::new(depth as u32)?;
        // Ones, not zeros: the memory is touched here and not while it is measured.
        Ok(Self { ring, file, buffers: vec![Page([1; 4096]); depth], free: (0..depth).collect() })
    }

    /// How many reads may be queued now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Queues the read of a page and returns the number of its buffer.
    pub fn read(&mut self, offset: u64) -> io::Result<usize> {
        let Some(buffer) = self.free.pop() else {
            return Err(io::Error::other("more reads are asked for than there is room for"));
        };
        let into = self.buffers[buffer].0.as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(self.file.as_raw_fd()), into, 4096).offset(offset).build();
        // SAFETY: the file and the buffers live as long as the ring, and longer than every read (see `drop`); the buffer is
        // not free, so that nobody looks at it or reads into it before its completion.
        unsafe { self.ring.submission().push(&entry.user_data(buffer as u64)) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        Ok(buffer)
    }

    /// Submits what is queued and waits until at least one read has ended; calls `each` with its buffer and bytes.
    pub fn wait(&mut self, mut each: impl FnMut(usize, &[u8])) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        for completion in self.ring.completion() {
            let buffer = completion.user_data() as usize;
            self.free.push(buffer);
            match completion.result() {
                4096 => each(buffer, &self.buffers[buffer].0),
                error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
                short => return Err(io::Error::other(format!("a read ended after {short} bytes"))),
            }
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        while self.free.len() < self.buffers.len() {
            if self.ring.submit_and_wait(1).is_err() {
                // The kernel may still write to them.
                std::mem::forget(std::mem::take(&mut self.buffers));
                return;
            }
            self.free.extend(self.ring.completion().map(|completion| completion.user_data() as usize));
        }
    }
}

/// Opens the LMDB environment in a folder, without read-ahead: single values are read.
#[cfg(feature = "peers-lmdb")]
pub fn open_lmdb(
    path: &std::path::Path,
    map_size: usize,
    read_only: bool,
) -> heed::Result<heed::Env<heed::WithoutTls>> {
    let mut options = heed::EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size);
    let mut flags = heed::EnvFlags::NO_READ_AHEAD;
    flags.set(heed::EnvFlags::READ_ONLY, read_only);
    // SAFETY: NO_READ_AHEAD advises the kernel, and READ_ONLY only forbids; neither gives up a guarantee.
    unsafe { options.flags(flags) };
    // SAFETY: the file belongs to this run: no other program maps, changes or truncates it, and it is opened once a process.
    unsafe { options.open(path) }
}
