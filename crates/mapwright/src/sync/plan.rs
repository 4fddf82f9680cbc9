//! What lies where in shared memory: a plan that all who share it make alike.
//!
//! The memory holds a copy of the plan. It is compared with the plan of whoever attaches, word by word, and never used to find
//! anything: an offset or a size that somebody has written there can't lead anybody astray.
//!
//! ```text
//! word 0            magic
//! word 1            version (high half), checksum of the plan (low half)
//! word 2, 3, 4      tag, words in all, number of objects
//! words 8..263      presence of up to 255 processes: state (low half, marked by the kernel), generation (high half)
//! words 512..767    their process ids
//! words 768..       the objects: kind and size, then count; two words each
//! then              the objects themselves, each at a multiple of 16 words, zero at first
//! ```

use std::marker::PhantomData;

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::shared::WORD;

use crate::error::{Error, Result};

/// "MWSHARED", as the machine orders bytes.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"MWSHARED");
/// Grows with every change of what lies in the memory.
pub(super) const VERSION: u32 = 1;
/// Word of the first presence.
pub(super) const PRESENCES: usize = 8;
/// Most processes at once: a name of one has eight bits for this.
pub(super) const MOST_PRESENCES: usize = 255;
/// Word of the first process id.
pub(super) const PROCESSES: usize = 512;
/// Word of the first object's description.
const OBJECTS: usize = 768;
/// Objects begin at multiples of this many words: two cache lines, which processors fetch together.
const ALIGN: usize = 16;
/// Words of a ring before its slots: three pairs of cache lines, and the roles of producers.
pub(super) const RING_HEAD: usize = 3 * ALIGN + MOST_PRODUCERS;
/// Producers that a ring for many may have at once.
pub(super) const MOST_PRODUCERS: usize = 64;

/// What may be put into shared memory: types of which every pattern of bytes is a value, without padding or pointers. The derives
/// of `zerocopy` say so of one's own.
pub trait Plain: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Send + 'static {}

impl<T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Send + 'static> Plain for T {}

/// Kinds of objects, by the number that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mutex = 1,
    Condition = 2,
    /// A ring with one producer.
    Ring = 3,
    /// A ring with many.
    RingOfMany = 4,
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Bytes of a value or message.
    pub(super) size: u32,
    /// Slots of a ring.
    pub(super) count: u32,
    /// First word, from the first object on.
    pub(super) at: usize,
}

impl Entry {
    /// Words of a value or message.
    pub(super) fn stride(&self) -> usize {
        (self.size as usize).div_ceil(WORD)
    }

    /// Words in all.
    fn words(&self) -> Option<usize> {
        match self.kind {
            Kind::Mutex => self.stride().checked_add(1),
            Kind::Condition => Some(1),
            Kind::Ring | Kind::RingOfMany => {
                let slots = self.stride().checked_add(1)?.checked_mul(self.count as usize)?;
                slots.checked_add(RING_HEAD)
            }
        }
    }

    /// As it is written.
    pub(super) fn encoded(&self) -> [u64; 2] {
        [(self.kind as u64) << 32 | u64::from(self.size), u64::from(self.count)]
    }
}

/// Where an object of type `O` lies: made by a [`Plan`], good for the segments of that plan.
#[derive(Debug)]
pub struct Place<O> {
    pub(super) index: usize,
    pub(super) entry: Entry,
    object: PhantomData<fn() -> O>,
}

impl<O> Clone for Place<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Place<O> {}

/// Which objects shared memory holds, in which order. All who share it make the same plan; attaching with another is refused.
///
/// ```
/// use mapwright::sync::Plan;
///
/// let mut plan = Plan::new(0x6a6f_6273_0001); // a number of one's own: what this is for, and which version of it
/// let total = plan.mutex::<u64>();
/// let changed = plan.condition();
/// let jobs = plan.ring::<[u8; 64]>(1024)?;
/// println!("{} bytes", plan.len());
/// # let _ = (total, changed, jobs);
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    tag: u64,
    entries: Vec<Entry>,
    /// Words that the objects need.
    words: usize,
}

impl Plan {
    /// A plan without objects. The tag says what the memory is for: it must be the same for all who share it.
    pub fn new(tag: u64) -> Self {
        Self { tag, entries: Vec::new(), words: 0 }
    }

    /// Adds a mutex with a value, which is all zeros at first.
    pub fn mutex<T: Plain>(&mut self) -> Place<super::Mutex<T>> {
        const { assert!(size_of::<T>() <= 1 << 24, "a value behind a mutex is copied: at most 16 MiB") };
        let words = Entry { kind: Kind::Mutex, size: size_of::<T>() as u32, count: 0, at: 0 };
        self.add(words).unwrap_or_else(|| unreachable!("no plan has that many objects"))
    }

    /// Adds a condition.
    pub fn condition(&mut self) -> Place<super::Condition> {
        let entry = Entry { kind: Kind::Condition, size: 0, count: 0, at: 0 };
        self.add(entry).unwrap_or_else(|| unreachable!("no plan has that many objects"))
    }

    /// Adds a ring for messages of type `T` from one producer to one consumer, with `capacity` slots, a power of two.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a capacity that is no power of two, or more memory than there are addresses.
    pub fn ring<T: Plain>(&mut self, capacity: u32) -> Result<Place<super::Ring<T>>> {
        self.add_ring::<T, _>(Kind::Ring, capacity)
    }

    /// Adds a ring for messages of type `T` from up to 64 producers to one consumer, with `capacity` slots, a power of two.
    ///
    /// # Errors
    /// As for [`ring`](Self::ring).
    pub fn ring_of_many<T: Plain>(&mut self, capacity: u32) -> Result<Place<super::RingOfMany<T>>> {
        self.add_ring::<T, _>(Kind::RingOfMany, capacity)
    }

    fn add_ring<T: Plain, O>(&mut self, kind: Kind, capacity: u32) -> Result<Place<O>> {
        const { assert!(size_of::<T>() > 0, "a message has at least one byte") };
        const { assert!(size_of::<T>() <= 1 << 24, "a message is copied: at most 16 MiB") };
        if !capacity.is_power_of_two() {
            return Err(Error::invalid(
                format!("a ring of {capacity} slots"),
                "take a power of two, such as 1024",
            ));
        }
        let entry = Entry { kind, size: size_of::<T>() as u32, count: capacity, at: 0 };
        let too_long = || {
            Error::invalid(
                format!("a ring of {capacity} messages of {} bytes", entry.size),
                "give it fewer slots: there are not that many addresses",
            )
        };
        self.add(entry).ok_or_else(too_long)
    }

    fn add<O>(&mut self, mut entry: Entry) -> Option<Place<O>> {
        entry.at = self.words;
        let words = self.words.checked_add(entry.words()?)?.checked_next_multiple_of(ALIGN)?;
        self.words = words.checked_mul(WORD).filter(|bytes| *bytes <= 1 << 46).map(|_| words)?;
        self.entries.push(entry);
        Some(Place { index: self.entries.len() - 1, entry, object: PhantomData })
    }

    /// Bytes of memory that the plan needs: whole pages.
    pub fn len(&self) -> u64 {
        ((self.first_object() + self.words) * WORD).next_multiple_of(PAGE_SIZE) as u64
    }

    /// Whether it has no objects.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Word at which the first object begins.
    pub(super) fn first_object(&self) -> usize {
        (OBJECTS + 2 * self.entries.len()).next_multiple_of(ALIGN)
    }

    pub(super) fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// The words that say what the memory is, in the order in which they are written and compared, with what each is.
    ///
    /// Of two who write different plans at once, one writes word 1 first; the other is refused there.
    pub(super) fn header(&self) -> Vec<(usize, u64, &'static str)> {
        let mut plan = vec![
            (2, !self.tag, "tag"),
            (3, (self.first_object() + self.words) as u64, "length in words"),
            (4, self.entries.len() as u64, "number of objects"),
        ];
        for (index, entry) in self.entries.iter().enumerate() {
            let [what, count] = entry.encoded();
            plan.push((OBJECTS + 2 * index, what, "kind and size of an object"));
            plan.push((OBJECTS + 2 * index + 1, count, "capacity of a ring"));
        }
        let bytes: Vec<u8> = plan.iter().flat_map(|(_, value, _)| value.to_le_bytes()).collect();
        let checked = u64::from(VERSION) << 32 | u64::from(crc32c::crc32c(&bytes));
        let mut header = vec![(0, MAGIC, "magic"), (1, checked, "version and checksum of the plan")];
        header.append(&mut plan);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_lie_apart_and_plans_differ_by_their_checksum() {
        let mut plan = Plan::new(7);
        let empty = plan.len();
        let one = plan.mutex::<[u8; 100]>();
        let two = plan.ring::<u32>(8).unwrap();
        let three = plan.condition();
        assert_eq!((one.entry.at, two.entry.at), (0, ALIGN));
        assert_eq!(three.entry.at, ALIGN + (RING_HEAD + 8 + 8).next_multiple_of(ALIGN));
        assert!(plan.len() >= empty && plan.len().is_multiple_of(PAGE_SIZE as u64) && !plan.is_empty());
        let checksum = |plan: &Plan| plan.header()[1].1;
        let (mut same, mut other) = (Plan::new(7), Plan::new(7));
        same.mutex::<[u8; 100]>();
        same.ring::<i32>(8).unwrap();
        same.condition();
        other.mutex::<[u8; 100]>();
        other.ring::<u32>(16).unwrap();
        other.condition();
        assert_eq!(checksum(&plan), checksum(&same));
        assert_ne!(checksum(&plan), checksum(&other));
        assert_ne!(checksum(&Plan::new(1)), checksum(&Plan::new(2)));
    }

    #[test]
    fn rings_that_cannot_be_are_refused() {
        let mut plan = Plan::new(0);
        for capacity in [0, 3, 1000] {
            assert!(matches!(plan.ring::<u8>(capacity), Err(Error::Invalid { .. })), "{capacity}");
        }
        assert!(matches!(plan.ring_of_many::<[u8; 1 << 20]>(1 << 31), Err(Error::Invalid { .. })));
        assert!(plan.is_empty());
    }
}
