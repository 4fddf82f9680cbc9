//! What both sides of a case can do, and what a case looks with.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use mapwright::mmap::Advice;

pub use crate::common::PAGE;

pub type Outcome<T = ()> = Result<T, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prot {
    None,
    Read,
    Write,
    Exec,
}

#[derive(Clone, Copy)]
pub enum Of<'a> {
    Anon,
    AnonShared,
    Shared(&'a File),
    Private(&'a File),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shm {
    CreateNew,
    Open,
    OpenReadOnly,
}

/// What anonymous memory can be asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    Populate,
    NoReserve,
    Stack,
    Locked,
    Huge,
}

/// Mappings by number, and the operations on them. Errors are names of error numbers; an access that a signal would answer
/// is `"no access"`.
pub trait Side {
    fn dir(&self) -> &Path;
    fn map(&mut self, of: Of<'_>, offset: u64, len: usize, prot: Prot) -> Outcome<usize>;
    /// Private anonymous memory with an option.
    fn map_with(&mut self, len: usize, extra: Extra) -> Outcome<usize>;
    /// Private anonymous memory between inaccessible pages.
    fn guarded(&mut self, len: usize) -> Outcome<usize>;
    fn address(&self, map: usize) -> usize;
    fn read(&self, map: usize, at: usize, len: usize) -> Outcome<Vec<u8>>;
    fn write(&mut self, map: usize, at: usize, bytes: &[u8]) -> Outcome;
    fn protect(&mut self, map: usize, prot: Prot) -> Outcome;
    /// Unmaps a part; the rest can be read by its address only.
    fn unmap(&mut self, map: usize, range: Range<usize>) -> Outcome;
    fn sync(&self, map: usize, range: Range<usize>, wait: bool) -> Outcome;
    fn advise(&self, map: usize, range: Range<usize>, advice: Advice) -> Outcome;
    /// MADV_DONTNEED.
    fn dont_need(&mut self, map: usize, range: Range<usize>) -> Outcome;
    /// MADV_REMOVE.
    fn remove(&mut self, map: usize, range: Range<usize>) -> Outcome;
    /// MADV_FREE on all of it, and a write to each page.
    fn free_and_write(&mut self, map: usize) -> Outcome;
    fn resident(&self, map: usize, range: Range<usize>) -> Outcome<Vec<bool>>;
    fn lock(&self, map: usize, on_fault: bool) -> Outcome;
    fn unlock(&self, map: usize) -> Outcome;
    fn resize(&mut self, map: usize, len: usize, may_move: bool) -> Outcome;
    /// Two mappings of `len` bytes at one address of a reservation: the second.
    fn place_twice(&mut self, len: usize) -> Outcome<usize>;
    fn shm(&mut self, name: &str, how: Shm, len: u64) -> Outcome<File>;
    fn shm_unlink(&mut self, name: &str) -> Outcome;
    fn memfd(&mut self, label: &str, len: u64) -> Outcome<File>;
    /// Adds the seals against writing, shrinking, growing and sealing.
    fn seal(&mut self, file: &File) -> Outcome;
}

/// The error's name: numbers differ between architectures, names don't.
pub fn name_of(errno: i32) -> String {
    let names = [
        (libc::EACCES, "EACCES"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EBADF, "EBADF"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EFAULT, "EFAULT"),
        (libc::EINVAL, "EINVAL"),
        (libc::EISDIR, "EISDIR"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOENT, "ENOENT"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::ENXIO, "ENXIO"),
        (libc::EOVERFLOW, "EOVERFLOW"),
        (libc::EPERM, "EPERM"),
    ];
    let found = names.into_iter().find(|(number, _)| *number == errno);
    found.map_or_else(|| format!("errno {errno}"), |(_, name)| name.to_owned())
}

pub fn errno(error: rustix::io::Errno) -> String {
    name_of(error.raw_os_error())
}

fn vectors(bytes: *mut u8, address: usize, len: usize) -> [libc::iovec; 2] {
    [
        libc::iovec { iov_base: bytes.cast(), iov_len: len },
        libc::iovec { iov_base: address as *mut _, iov_len: len },
    ]
}

/// Reads as the program would, without dying of it: the kernel copies, and says EFAULT where a signal would come.
pub fn peek(address: usize, len: usize) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0; len];
    let [local, remote] = vectors(bytes.as_mut_ptr(), address, len);
    let own = std::process::id() as i32;
    // SAFETY: the local vector is `bytes`; the kernel checks the remote one.
    let copied = unsafe { libc::process_vm_readv(own, &raw const local, 1, &raw const remote, 1, 0) };
    if copied == len as isize { Ok(bytes) } else { Err("no access".to_owned()) }
}

/// Writes as the program would, likewise.
pub fn poke(address: usize, bytes: &[u8]) -> Outcome {
    let [local, remote] = vectors(bytes.as_ptr().cast_mut(), address, bytes.len());
    let own = std::process::id() as i32;
    // SAFETY: the kernel only reads the local vector, and checks the remote one, which is memory of the case's own.
    let copied = unsafe { libc::process_vm_writev(own, &raw const local, 1, &raw const remote, 1, 0) };
    if copied == bytes.len() as isize { Ok(()) } else { Err("no access".to_owned()) }
}

/// Bytes as text.
pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).replace('\0', "0")
}

/// A file in the side's folder, for reading and writing.
pub fn file(side: &dyn Side, contents: &[u8]) -> File {
    let path = side.dir().join("file");
    std::fs::write(&path, contents).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// Pages, each of one letter: a, b, c.
pub fn letters(pages: usize) -> Vec<u8> {
    (0..pages).flat_map(|page| [b'a' + page as u8; PAGE]).collect()
}

/// The file's bytes.
pub fn on_disk(side: &dyn Side) -> Vec<u8> {
    std::fs::read(side.dir().join("file")).unwrap()
}

/// KiB of this process that are locked.
pub fn locked_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Does something in a child of fork, which ends with what it returns.
pub fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child touches memory of the case's own and ends without running anything else.
    match unsafe { libc::fork() } {
        0 => {
            let done = work();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if done { 0 } else { 1 }) };
        }
        pid => {
            let mut status = 0;
            // SAFETY: the child is this process's, and `status` lives across the call.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            status == 0
        }
    }
}
