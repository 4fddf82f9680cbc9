//! Memory for code: what can be written can't be executed, and the other way round.
//!
//! Two ways. *Flipped*: [`MmapMut`](super::MmapMut) is written, [`make_exec`](Mapping::make_exec) turns it into
//! [`MmapExec`](super::MmapExec), [`make_mut`](Mapping::make_mut) back. *Two views*, for code that is changed while other code of
//! the same memory runs: [`CodeWriter`] writes, [`MmapCode`] is run; they are two mappings of one memory file, which nobody else
//! can map.

use std::ops::RangeBounds;
use std::os::fd::AsFd;
use std::sync::Arc;

use mapwright_sys::mmap::{
    Executes, Region, Request, Source, VolatileExec, synchronise_code, synchronises_code,
};

use super::fail::{Attempt, OrFailed};
use super::mapping::{Mapping, MmapRaw};
use super::memory_file::MemoryFile;
use crate::error::{Error, Result};

/// Code that a [`CodeWriter`] writes: jumped to, and read by copies.
pub type MmapCode = Mapping<VolatileExec>;

impl<K: Executes> Mapping<K> {
    /// The address of the code at `offset`, to be turned into a function pointer. That, and the call, is the caller's promise: that
    /// there is a function of this type for this machine, and that the mapping lives as long as it runs.
    ///
    /// ```
    /// use mapwright::mmap::MmapMut;
    ///
    /// #[cfg(target_arch = "x86_64")]
    /// const ANSWER: &[u8] = &[0xb8, 42, 0, 0, 0, 0xc3]; // mov eax, 42; ret
    /// #[cfg(target_arch = "aarch64")]
    /// const ANSWER: &[u8] = &[0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6]; // mov w0, #42; ret
    ///
    /// let mut memory = MmapMut::map_anon(4096)?;
    /// memory[..ANSWER.len()].copy_from_slice(ANSWER);
    /// let code = memory.make_exec()?; // not writable any more
    /// // SAFETY: the bytes are this function for this machine, and `code` outlives the call.
    /// let answer: extern "C" fn() -> i32 = unsafe { std::mem::transmute(code.entry(0)?) };
    /// assert_eq!(answer(), 42);
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange).
    pub fn entry(&self, offset: usize) -> Result<*const ()> {
        self.resolve(offset..=offset)?;
        Ok(self.as_ptr().wrapping_add(offset).cast())
    }
}

/// The writing side of memory for code; the running side, [`MmapCode`], is made with it. Neither is writable and executable, nor
/// can be made so.
///
/// # Threads and fork
/// `Send` and `Sync`. What a thread jumps to while it is written is a mixture of old and new: write where nobody runs,
/// [publish](Self::publish), then tell others the address. A child made by fork(2) shares the memory.
///
/// ```
/// use mapwright::mmap::CodeWriter;
///
/// let (mut writer, code) = CodeWriter::new(8192)?;
/// writer.write_at(4096, &[0xc3])?; // x86-64: ret
/// writer.publish(4096..4097)?; // what jumps there from now on runs it
/// assert_eq!(code.to_vec(4096..4097)?, [0xc3]);
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct CodeWriter {
    memory: MmapRaw,
    code: Arc<MmapCode>,
}

impl CodeWriter {
    /// `len` bytes of zeros, with both views.
    ///
    /// # Errors
    /// [`Unsupported`](Error::Unsupported) on other machines than x86-64 and AArch64; [`Invalid`](Error::Invalid) for a length of
    /// 0; [`ReadOnly`](Error::ReadOnly) where a security policy allows no executable mapping of a memory file (SELinux: `execmem`,
    /// `execmod`); [`LimitReached`](Error::LimitReached) and [`Io`](Error::Io) as for other mappings.
    pub fn new(len: usize) -> Result<(Self, Arc<MmapCode>)> {
        if !synchronises_code() {
            let source = std::io::ErrorKind::Unsupported.into();
            return Err(Error::unsupported("memory for code", "there is MmapExec on other machines", source));
        }
        if len == 0 {
            return Err(Error::invalid("memory for code of 0 bytes", "say how long the code is"));
        }
        // Neither length nor contents can be changed through the descriptor any more, which ends here.
        let file = MemoryFile::create("code", len as u64)?;
        file.seal_length()?;
        let memory = file.map()?;
        let source = Source::File { fd: file.as_fd(), offset: 0, shared: true };
        let attempt =
            Attempt { operation: "mmap", name: "memory for code", offset: 0, len: len as u64, huge: false };
        let region = Region::volatile(&Request::new(source, len)).or_failed(attempt)?;
        let code = Arc::new(Mapping::new(region, None));
        Ok((Self { memory, code: Arc::clone(&code) }, code))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The running side.
    pub fn code(&self) -> &Arc<MmapCode> {
        &self.code
    }

    /// Copies bytes in. Nobody may run them before they are published.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange); [`Io`](Error::Io) where there is no memory left.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write_at(offset, bytes)
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.memory.read_at(offset, into)
    }

    /// Lets all processors know what was written: caches of code are cleaned where they must be, and every processor that runs this
    /// process forgets what it has fetched (membarrier(2)).
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange); on AArch64 [`Unsupported`](Error::Unsupported) or [`Io`](Error::Io) where membarrier(2) is
    /// refused.
    pub fn publish(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.code.resolve(range)?;
        synchronise_code(&self.code.region, range.clone())
            .map_err(|error| self.code.failed("membarrier", &range, error))
    }
}
