//! A vector on a file.
//!
//! The file, of which all numbers are little-endian:
//!
//! ```text
//! 0   magic, "MWMAPVEC"
//! 8   version, 4 bytes: 1
//! 12  offset of the first element, 4 bytes: 64, or the element's alignment if that is more
//! 16  size of an element, 8 bytes
//! 24  tag, 8 bytes: the user's own
//! 32  number of elements, 8 bytes
//! 40  alignment of an element, 4 bytes
//! 44  byte order of the elements, 1 byte: 1 little, 2 big
//! 45  zeros
//! 60  checksum of the bytes before (CRC-32C)
//! 64  elements, and behind them room for more, of any contents
//! ```
//!
//! Invariants: (1) the header is changed by `flush` alone, after the elements that it counts are durable: so it never counts what
//! was not written. (2) The file is never shorter than header and counted elements. (3) After a `flush` that failed the header in
//! the file counts what it did before or what it was to count: both are kept in mind, and the next flush writes it again.

use std::fs::File;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use mapwright_sys::signals::print_raw;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};
use crate::{MapMut, MapOptions, Strategy};

const MAGIC: [u8; 8] = *b"MWMAPVEC";
const VERSION: u32 = 1;
/// Bytes of the header.
const HEADER: usize = 64;
/// Where its checksum stands.
const CHECKSUM: usize = 60;
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
/// The smallest growth, in bytes.
const LEAST_GROWTH: u64 = 64 << 10;

/// A vector of `T` in a file: it grows, and derefs to a slice of its elements.
///
/// It is a [`MapMut`] underneath: elements are in memory as far as the pager's budget allows, the address stays while it grows,
/// and what is not flushed is lost when the process is killed. What was flushed is there, with the number of elements at
/// that flush; elements that were changed in place since may be old or new.
///
/// The file grows by half at a time, at least, and is cut to its elements by [`close`](Self::close) and drop. It is locked against a second
/// writer. On a full disk, `flush` is what fails.
///
/// # Threads and fork
/// `Send` and `Sync` if `T` is. For fork see [`MapMut`].
///
/// ```
/// use mapwright::MapVec;
/// # let path = std::env::temp_dir().join(format!("mapwright-vec-{}", std::process::id()));
/// # let _ = std::fs::remove_file(&path);
///
/// let mut vector = MapVec::<u64>::create(&path)?;
/// vector.push(3)?;
/// vector.extend_from_slice(&[1, 2])?;
/// vector.sort_unstable(); // it is a slice
/// vector.close()?; // durable now; drop would do it too, but could not say if it failed
///
/// let mut vector = MapVec::<u64>::open(&path)?;
/// assert_eq!(vector[..], [1, 2, 3]);
/// assert_eq!(vector.pop(), Some(3));
/// assert!(MapVec::<u32>::open(&path).is_err()); // of another kind, and in use besides
/// # drop(vector);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct MapVec<T: FromBytes + IntoBytes + Immutable + KnownLayout> {
    map: MapMut,
    path: String,
    len: usize,
    tag: u64,
    /// Elements that the header counts for sure, in the file: those of the last flush that succeeded.
    counted: usize,
    /// Elements that the header counts in memory, and in the file by the next flush at the latest.
    written: usize,
    is_closed: bool,
    elements: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> MapVec<T> {
    const SIZE: usize = {
        assert!(size_of::<T>() > 0, "an element has at least one byte");
        size_of::<T>()
    };
    /// Offset of the first element.
    const FIRST: usize = if align_of::<T>() > HEADER {
        assert!(align_of::<T>() <= 4096, "mappings are aligned to pages of 4096 bytes");
        align_of::<T>()
    } else {
        HEADER
    };

    /// Makes a file with an empty vector. It must not exist; a symbolic link in its place is not followed.
    ///
    /// # Errors
    /// As for [`create_with`](Self::create_with).
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::create_with(&MapOptions::new(), path, 0)
    }

    /// Opens a file with a vector of this type.
    ///
    /// # Errors
    /// As for [`open_with`](Self::open_with).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(&MapOptions::new(), path, 0)
    }

    /// As [`create`](Self::create), mapped by options, with a tag: a number of the user's own, for what the type's size does not
    /// say.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `EEXIST`; [`Invalid`](Error::Invalid) for options that map a part of the file or a buffer;
    /// otherwise as for [`MapOptions::open_mut`] and [`flush`](Self::flush). The file is removed again then.
    pub fn create_with(options: &MapOptions, path: impl AsRef<Path>, tag: u64) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error| Error::io("create", path.display().to_string(), 0, 0, error);
        Self::check_options(options, path)?;
        drop(File::options().read(true).write(true).create_new(true).open(path).map_err(failed)?);
        Self::make(options, path, tag).inspect_err(|_| {
            let _ = std::fs::remove_file(path); // it is empty, and was made above
        })
    }

    fn make(options: &MapOptions, path: &Path, tag: u64) -> Result<Self> {
        let map = options.open_mut(path)?;
        let mut vector = Self::of(map, path, tag, 0)?;
        vector.map.resize(Self::FIRST as u64)?;
        vector.write_header();
        vector.map.flush()?;
        vector.is_closed = false;
        Ok(vector)
    }

    /// As [`open`](Self::open), mapped by options, if the file has this tag.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) for a file that is no vector, of another version or byte order, of elements of
    /// another size or alignment, with another tag, damaged, or shorter than it says; [`Invalid`](Error::Invalid) for options
    /// that map a part of the file or a buffer; otherwise as for [`MapOptions::open_mut`].
    pub fn open_with(options: &MapOptions, path: impl AsRef<Path>, tag: u64) -> Result<Self> {
        let path = path.as_ref();
        Self::check_options(options, path)?;
        let map = options.open_mut(path)?;
        let mut header = [0; HEADER];
        let found = (map.len() as u64).min(HEADER as u64) as usize;
        map.read_at(0, &mut header[..found])?;
        let len = Self::check_header(&header, found, map.len() as u64, tag).map_err(|what| {
            let remedy = "open it with the type and tag it was made with, or make a new one";
            Error::NotTrusted { path: path.display().to_string(), what, remedy }
        })?;
        let mut vector = Self::of(map, path, tag, len)?;
        vector.is_closed = false;
        Ok(vector)
    }

    fn of(map: MapMut, path: &Path, tag: u64, len: usize) -> Result<Self> {
        // Closed until it has a header.
        let path = path.display().to_string();
        let vector =
            Self { map, path, len, tag, counted: len, written: len, is_closed: true, elements: PhantomData };
        match vector.map.strategy().strategy() {
            Strategy::Buffer => Err(vector.unfit("a buffer")),
            Strategy::Auto | Strategy::Kernel | Strategy::Pager => Ok(vector),
        }
    }

    fn check_options(options: &MapOptions, path: &Path) -> Result<()> {
        if options.is_whole() {
            return Ok(());
        }
        let what = format!("{}: a vector in a part of the file", path.display());
        Err(Error::invalid(what, "leave MapOptions::range away: a vector has a file to itself"))
    }

    fn unfit(&self, what: &str) -> Error {
        let what = format!("{}: a vector on {what}", self.path);
        Error::invalid(what, "open it with Strategy::Auto, Pager or Kernel, which keep the address")
    }

    /// The number of elements that a header tells, if it is right.
    fn check_header(header: &[u8; HEADER], found: usize, file_len: u64, tag: u64) -> Result<usize, String> {
        let word = |at: usize| u32::from_le_bytes(array(&header[at..at + 4]));
        let long = |at: usize| u64::from_le_bytes(array(&header[at..at + 8]));
        if found < HEADER || header[..8] != MAGIC {
            return Err("it holds no vector: it does not begin with MWMAPVEC".to_owned());
        }
        let is = |what: &str, found: u64, wanted: u64| match found == wanted {
            true => Ok(()),
            false => Err(format!("its {what} is {found}, and not {wanted}")),
        };
        is("version", word(8).into(), VERSION.into())?;
        is("checksum", word(CHECKSUM).into(), crc32c::crc32c(&header[..CHECKSUM]).into())?;
        is("size of elements", long(16), Self::SIZE as u64)?;
        is("alignment of elements", word(40).into(), align_of::<T>() as u64)?;
        is("byte order", header[44].into(), BYTE_ORDER.into())?;
        is("first offset", word(12).into(), Self::FIRST as u64)?;
        is("tag", long(24), tag)?;
        let count = long(32);
        let end = count.checked_mul(Self::SIZE as u64).and_then(|len| len.checked_add(Self::FIRST as u64));
        match (end, usize::try_from(count)) {
            (Some(end), Ok(count)) if end <= file_len => Ok(count),
            _ => Err(format!("it counts {count} elements, for which its {file_len} bytes have no room")),
        }
    }

    /// Writes the header for the elements there are.
    fn write_header(&mut self) {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(Self::FIRST as u32).to_le_bytes());
        header[16..24].copy_from_slice(&(Self::SIZE as u64).to_le_bytes());
        header[24..32].copy_from_slice(&self.tag.to_le_bytes());
        header[32..40].copy_from_slice(&(self.len as u64).to_le_bytes());
        header[40..44].copy_from_slice(&(align_of::<T>() as u32).to_le_bytes());
        header[44] = BYTE_ORDER;
        let checksum = crc32c::crc32c(&header[..CHECKSUM]);
        header[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        self.map[..HEADER].copy_from_slice(&header);
        self.written = self.len;
    }

    /// Number of elements for which the file has room.
    pub fn capacity(&self) -> usize {
        (self.map.len() - Self::FIRST) / Self::SIZE
    }

    /// The tag.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The map underneath, header and room for more included: for its pins, checked scopes, statistics.
    pub fn map(&self) -> &MapMut {
        &self.map
    }

    /// Adds an element.
    ///
    /// # Errors
    /// As for [`reserve`](Self::reserve).
    pub fn push(&mut self, value: T) -> Result<()> {
        self.extend_from_slice(std::slice::from_ref(&value))
    }

    /// Adds copies of elements.
    ///
    /// # Errors
    /// As for [`reserve`](Self::reserve); none is added then.
    pub fn extend_from_slice(&mut self, values: &[T]) -> Result<()> {
        if values.len() > self.capacity() - self.len {
            self.reserve(values.len())?;
        }
        let start = Self::FIRST + self.len * Self::SIZE;
        let bytes = values.as_bytes();
        self.map[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += values.len();
        Ok(())
    }

    /// Adds all that an iterator has.
    ///
    /// # Errors
    /// As for [`reserve`](Self::reserve); what came before is there.
    pub fn extend(&mut self, values: impl IntoIterator<Item = T>) -> Result<()> {
        values.into_iter().try_for_each(|value| self.push(value))
    }

    /// Takes the last element away.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        let start = Self::FIRST + last * Self::SIZE;
        let value = T::read_from_bytes(&self.map[start..start + Self::SIZE]).ok()?;
        self.len = last;
        Some(value)
    }

    /// Drops the elements from `len` on, if there are that many. The file keeps its length.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Drops all elements. The file keeps its length.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes room for `additional` elements, and for some more, so that adding one at a time costs constant time on average.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) past what the address space was reserved for ([`MapOptions::reserve`]); otherwise as for
    /// [`MapMut::resize`].
    pub fn reserve(&mut self, additional: usize) -> Result<()> {
        let needed = self
            .len
            .checked_add(additional)
            .and_then(|count| count.checked_mul(Self::SIZE))
            .and_then(|bytes| bytes.checked_add(Self::FIRST))
            .ok_or_else(|| {
                let what = format!("{}: {additional} elements more", self.path);
                Error::invalid(what, "there are not that many addresses")
            })? as u64;
        let now = self.map.len() as u64;
        if needed <= now {
            return Ok(());
        }
        let generous = needed.max(now.saturating_add((now / 2).max(LEAST_GROWTH)));
        match self.map.resize(generous) {
            // There may be room for what is needed, if not for more.
            Err(_) if generous > needed => self.map.resize(needed),
            resized => resized,
        }
    }

    /// Cuts the file to its elements; the file itself is cut at the next flush.
    ///
    /// # Errors
    /// As for [`MapMut::resize`].
    pub fn shrink_to_fit(&mut self) -> Result<()> {
        // The header on disk may count elements that were dropped since: it is put right before they are cut off.
        if self.len < self.counted.max(self.written) {
            self.flush()?;
        }
        let len = (Self::FIRST + self.len * Self::SIZE) as u64;
        if len < self.map.len() as u64 { self.map.resize(len) } else { Ok(()) }
    }

    /// Makes all elements durable, and then their number.
    ///
    /// # Errors
    /// As for [`MapMut::flush`], and latched as there; the number on disk is that of the last flush that succeeded, or this one's.
    pub fn flush(&mut self) -> Result<()> {
        self.map.flush()?;
        if (self.counted, self.written) == (self.len, self.len) {
            return Ok(());
        }
        self.write_header();
        self.map.flush_range(..HEADER as u64)?;
        self.counted = self.len;
        Ok(())
    }

    /// Takes the error of an earlier write-back that failed: see [`MapMut::acknowledge_error`].
    pub fn acknowledge_error(&self) -> Option<Error> {
        self.map.acknowledge_error()
    }

    /// Cuts the file to its elements, flushes, and closes.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush). It is closed all the same: call `flush` first if you want to try again.
    pub fn close(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.is_closed = true;
        let done = self.shrink_to_fit().and_then(|()| self.flush());
        self.map.set_closed();
        done
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Drop for MapVec<T> {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        if let Err(error) = self.finish() {
            print_raw(&format!(
                "mapwright: changes were lost when a vector was dropped (call close to get this error): {error}\n"
            ));
        }
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Deref for MapVec<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        let bytes = &self.map[Self::FIRST..Self::FIRST + self.len * Self::SIZE];
        <[T]>::ref_from_bytes_with_elems(bytes, self.len)
            .unwrap_or_else(|_| unreachable!("elements begin at a multiple of their alignment"))
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> DerefMut for MapVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        let bytes = &mut self.map[Self::FIRST..Self::FIRST + len * Self::SIZE];
        <[T]>::mut_from_bytes_with_elems(bytes, len)
            .unwrap_or_else(|_| unreachable!("elements begin at a multiple of their alignment"))
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> AsRef<[T]> for MapVec<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
