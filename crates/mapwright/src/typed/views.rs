//! Views of bytes as values, and copies of values.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result, ViewProblem};

/// Bytes seen as values of type `T`, without a copy. For all that has bytes: [`Map`](crate::Map), [`MapMut`](crate::MapMut),
/// [`Pinned`](crate::Pinned), [`Mmap`](crate::mmap::Mmap), slices.
///
/// Offsets are in bytes from the first one, and counts in values. Values have the machine's byte order, unless their type is one of
/// `zerocopy::byteorder`, which have no alignment either. Mappings begin at a page, so that what is aligned in a file is aligned
/// in a mapping of all of it; bytes that were read into memory ([`Strategy::Buffer`](crate::Strategy::Buffer)) may lie anywhere.
///
/// ```
/// use mapwright::mmap::MmapMut;
/// use mapwright::{Error, Views, ViewsMut};
/// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
///
/// #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
/// #[repr(C)]
/// struct Header {
///     magic: [u8; 4],
///     count: u32,
/// }
///
/// let mut memory = MmapMut::map_anon(4096)?;
/// memory.view_mut::<Header>(0)?.count = 2;
/// memory.view_slice_mut::<u64>(8, 2)?.copy_from_slice(&[10, 20]);
/// let header: &Header = memory.view(0)?;
/// assert_eq!(memory.view_slice::<u64>(8, header.count as usize)?, [10, 20]);
/// assert_eq!(memory.read_value::<u32>(9)?, 0); // a copy needs no alignment
/// assert!(matches!(memory.view::<u32>(9), Err(Error::View { offset: 9, .. })));
/// # Ok::<(), mapwright::Error>(())
/// ```
pub trait Views {
    /// The value at `offset`.
    ///
    /// # Errors
    /// [`View`](Error::View) past the end, or where the value would not be aligned.
    fn view<T: FromBytes + KnownLayout + Immutable>(&self, offset: usize) -> Result<&T>;

    /// `count` values from `offset` on.
    ///
    /// # Errors
    /// As for [`view`](Self::view).
    fn view_slice<T: FromBytes + KnownLayout + Immutable>(&self, offset: usize, count: usize)
    -> Result<&[T]>;

    /// All bytes, as values.
    ///
    /// # Errors
    /// As for [`view`](Self::view), and if the length is no multiple of the value's size.
    fn view_all<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<&[T]>;

    /// A copy of the value at `offset`, which may be any.
    ///
    /// # Errors
    /// [`View`](Error::View) past the end.
    fn read_value<T: FromBytes>(&self, offset: usize) -> Result<T>;
}

/// As [`Views`], for writing.
pub trait ViewsMut: Views {
    /// The value at `offset`, to be changed.
    ///
    /// # Errors
    /// As for [`Views::view`].
    fn view_mut<T: FromBytes + IntoBytes + KnownLayout>(&mut self, offset: usize) -> Result<&mut T>;

    /// `count` values from `offset` on, to be changed.
    ///
    /// # Errors
    /// As for [`Views::view`].
    fn view_slice_mut<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
        &mut self,
        offset: usize,
        count: usize,
    ) -> Result<&mut [T]>;

    /// Writes a value at `offset`, which may be any.
    ///
    /// # Errors
    /// [`View`](Error::View) past the end.
    fn write_value<T: IntoBytes + Immutable>(&mut self, offset: usize, value: &T) -> Result<()>;
}

impl<B: AsRef<[u8]> + ?Sized> Views for B {
    #[inline]
    fn view<T: FromBytes + KnownLayout + Immutable>(&self, offset: usize) -> Result<&T> {
        let place = Place::of::<T>(offset);
        let bytes = place.find(self.as_ref(), 1)?;
        T::ref_from_bytes(bytes).map_err(|_| place.misaligned(bytes))
    }

    #[inline]
    fn view_slice<T: FromBytes + KnownLayout + Immutable>(
        &self,
        offset: usize,
        count: usize,
    ) -> Result<&[T]> {
        let place = Place::of::<T>(offset);
        let bytes = place.find(self.as_ref(), count)?;
        <[T]>::ref_from_bytes_with_elems(bytes, count).map_err(|_| place.misaligned(bytes))
    }

    fn view_all<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<&[T]> {
        let len = self.as_ref().len();
        let place = Place::of::<T>(0);
        if place.size == 0 || !len.is_multiple_of(place.size) {
            return Err(place.failed(ViewProblem::NotWhole { size: place.size, len }));
        }
        self.view_slice(0, len / place.size)
    }

    #[inline]
    fn read_value<T: FromBytes>(&self, offset: usize) -> Result<T> {
        let place = Place::of::<T>(offset);
        let bytes = place.find(self.as_ref(), 1)?;
        T::read_from_bytes(bytes).map_err(|_| place.too_short(1, bytes.len()))
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]> + ?Sized> ViewsMut for B {
    #[inline]
    fn view_mut<T: FromBytes + IntoBytes + KnownLayout>(&mut self, offset: usize) -> Result<&mut T> {
        let place = Place::of::<T>(offset);
        let bytes = place.find_mut(self.as_mut(), 1)?;
        let error = place.misaligned(bytes);
        T::mut_from_bytes(bytes).map_err(|_| error)
    }

    #[inline]
    fn view_slice_mut<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
        &mut self,
        offset: usize,
        count: usize,
    ) -> Result<&mut [T]> {
        let place = Place::of::<T>(offset);
        let bytes = place.find_mut(self.as_mut(), count)?;
        let error = place.misaligned(bytes);
        <[T]>::mut_from_bytes_with_elems(bytes, count).map_err(|_| error)
    }

    #[inline]
    fn write_value<T: IntoBytes + Immutable>(&mut self, offset: usize, value: &T) -> Result<()> {
        let bytes = Place::of::<T>(offset).find_mut(self.as_mut(), 1)?;
        bytes.copy_from_slice(value.as_bytes());
        Ok(())
    }
}

/// Where a value is wanted.
#[derive(Clone, Copy)]
struct Place {
    type_name: &'static str,
    offset: usize,
    size: usize,
    align: usize,
}

impl Place {
    fn of<T>(offset: usize) -> Self {
        Self { type_name: std::any::type_name::<T>(), offset, size: size_of::<T>(), align: align_of::<T>() }
    }

    /// The bytes of `count` values.
    fn find(self, bytes: &[u8], count: usize) -> Result<&[u8]> {
        let end = self.end(count);
        end.and_then(|end| bytes.get(self.offset..end)).ok_or_else(|| self.too_short(count, bytes.len()))
    }

    fn find_mut(self, bytes: &mut [u8], count: usize) -> Result<&mut [u8]> {
        let (end, len) = (self.end(count), bytes.len());
        end.and_then(|end| bytes.get_mut(self.offset..end)).ok_or_else(|| self.too_short(count, len))
    }

    fn end(self, count: usize) -> Option<usize> {
        self.size.checked_mul(count)?.checked_add(self.offset)
    }

    fn too_short(self, count: usize, len: usize) -> Error {
        let needed = self.size.saturating_mul(count);
        self.failed(ViewProblem::TooShort { needed, left: len.saturating_sub(self.offset) })
    }

    fn misaligned(self, bytes: &[u8]) -> Error {
        let address = bytes.as_ptr() as usize;
        self.failed(ViewProblem::Misaligned { align: self.align, rest: address % self.align })
    }

    fn failed(self, problem: ViewProblem) -> Error {
        Error::View { type_name: self.type_name, offset: self.offset, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C, align(16))]
    struct Aligned([u8; 64]);

    #[track_caller]
    fn problem<T>(result: Result<T>) -> ViewProblem {
        match result.map(|_| ()) {
            Err(Error::View { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn views_see_and_change_the_bytes() {
        let mut memory = Aligned([0; 64]);
        let bytes = &mut memory.0[..];
        *bytes.view_mut::<u32>(4).unwrap() = 0x0403_0201;
        bytes.view_slice_mut::<u16>(10, 2).unwrap().copy_from_slice(&[1, 2]);
        bytes.write_value(33, &7u64).unwrap();
        assert_eq!(*bytes.view::<[u8; 4]>(4).unwrap(), 0x0403_0201u32.to_ne_bytes());
        assert_eq!(bytes.view_slice::<u16>(10, 2).unwrap(), [1, 2]);
        assert_eq!((bytes.read_value::<u64>(33).unwrap(), bytes.view_all::<u128>().unwrap().len()), (7, 4));
        assert!(bytes.view_slice::<u64>(64, 0).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        let mut memory = Aligned([0; 64]);
        let bytes = &mut memory.0[..];
        let past = ViewProblem::TooShort { needed: 8, left: 7 };
        assert_eq!(problem(bytes.view::<u64>(57)), past);
        assert_eq!(problem(bytes.read_value::<u64>(57)), past);
        assert_eq!(problem(bytes.write_value(57, &0u64)), past);
        assert_eq!(problem(bytes.view::<u8>(100)), ViewProblem::TooShort { needed: 1, left: 0 });
        for count in [9, usize::MAX / 8, usize::MAX] {
            let needed = count.saturating_mul(8);
            assert_eq!(
                problem(bytes.view_slice::<u64>(0, count)),
                ViewProblem::TooShort { needed, left: 64 }
            );
            assert!(bytes.view_slice_mut::<u64>(8, count).is_err());
        }
        assert_eq!(problem(bytes.view::<u64>(12)), ViewProblem::Misaligned { align: 8, rest: 4 });
        assert_eq!(problem(bytes.view_mut::<u16>(3)), ViewProblem::Misaligned { align: 2, rest: 1 });
        assert_eq!(problem(bytes.view_slice::<u32>(2, 3)), ViewProblem::Misaligned { align: 4, rest: 2 });
        let parts = &bytes[..60];
        assert_eq!(problem(parts.view_all::<u64>()), ViewProblem::NotWhole { size: 8, len: 60 });
        let error = bytes.view::<u64>(12).unwrap_err().to_string();
        assert!(
            error.contains("u64") && error.contains("offset 12") && error.contains("multiple of 8"),
            "{error}"
        );
    }
}
