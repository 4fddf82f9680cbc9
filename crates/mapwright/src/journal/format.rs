//! The journal's bytes: docs/journal-format.md, as encoders and decoders that do no I/O.
//!
//! Decoders take arrays of the right size, or slices whose length they check, and never read outside them. They refuse what
//! they do not know. That a checksum is right is said before anything else is believed, but for magic and version.

/// Bytes in a page of the file: a record never crosses a multiple of it.
pub const PAGE: u64 = 4096;
/// Bytes in a unit, unless a header says otherwise.
pub const UNIT: u32 = 4096;
/// Bytes of a header, an anchor and the head of an entry.
pub const HEAD: usize = 64;
/// Bytes of the head of a record.
pub const RECORD: usize = 24;
/// The version this code writes, and the only one it reads.
pub const VERSION: u32 = 1;

const HEADER_MAGIC: [u8; 8] = [0x89, b'M', b'W', b'J', 0x0d, 0x0a, 0x1a, 0x0a];
const ANCHOR_MAGIC: [u8; 4] = *b"MWan";
const ENTRY_MAGIC: [u8; 4] = *b"MWen";
const CHECKSUM_AT: usize = HEAD - 4;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// There are fewer bytes than it takes.
    Short,
    /// They do not begin as they must.
    Magic,
    /// A version that this code does not know.
    Version(u32),
    /// The checksum is of other bytes.
    Checksum,
    /// The checksum is right, but a field has a value that this code does not know.
    Unknown(&'static str),
}

/// What a journal's checksums begin with, so that nothing of another journal is taken for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

/// Which file a journal belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The file's inode.
    pub inode: u64,
    /// Its time of birth in nanoseconds since 1970; 0 where the file system keeps none.
    pub born_ns: i64,
}

/// Unit 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes in a unit.
    pub unit: u32,
    /// Drawn when the journal was made.
    pub salt: Salt,
    /// The file it belongs to.
    pub identity: Identity,
}

/// Units 1 and 2, in turn: where the file ends and the journal begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// One more than in the anchor before it.
    pub counter: u64,
    /// Position of the first entry that the file may lack.
    pub start: u64,
    /// Sequence number of the commit before that entry.
    pub sequence: u64,
    /// Length of the file after that commit, in bytes.
    pub file_len: u64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Records of a transaction that counts when a commit follows.
    Part,
    /// The last records of a transaction.
    Commit {
        /// Length of the file after it, in bytes.
        file_len: u64,
    },
    /// The next entry is elsewhere.
    Jump {
        /// Where.
        to: u64,
    },
}

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Whether it is the first of its transaction: parts before it, without a commit, were abandoned.
    pub begins: bool,
    /// Where it lies.
    pub position: u64,
    /// Its number.
    pub sequence: u64,
    /// The number of the entry before it.
    pub previous: u64,
    /// The number of the newest commit that was durable when it was written.
    pub durable_commit: u64,
    /// Bytes of records that follow.
    pub records: u32,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes of the file.
    Data {
        /// Where in the file.
        offset: u64,
        /// How many: 1 to 4096.
        len: u32,
    },
    /// A change of length.
    Length(u64),
}

impl Header {
    /// Where entries begin.
    pub fn base(&self) -> u64 {
        3 * u64::from(self.unit)
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        put(&mut bytes, 0, &HEADER_MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.unit.to_le_bytes());
        put(&mut bytes, 16, &self.salt.0);
        put(&mut bytes, 32, &self.identity.inode.to_le_bytes());
        put(&mut bytes, 40, &self.identity.born_ns.to_le_bytes());
        put(&mut bytes, 48, &(PAGE as u32).to_le_bytes());
        seal(&mut bytes, &self.salt);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`]; the version before the checksum, because another version may have put that elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; HEAD] = head(bytes)?;
        if bytes[..8] != HEADER_MAGIC {
            return Err(Malformed::Magic);
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(Malformed::Version(version)),
        }
        let salt = Salt(array_at(bytes, 16));
        check(bytes, &salt)?;
        let unit = u32_at(bytes, 12);
        if !unit.is_power_of_two() || !(512..=65_536).contains(&unit) {
            return Err(Malformed::Unknown("unit"));
        }
        if u64::from(u32_at(bytes, 48)) != PAGE {
            return Err(Malformed::Unknown("page size"));
        }
        zero(&bytes[52..CHECKSUM_AT], "bytes 52 to 60 of the header")?;
        let identity =
            Identity { inode: u64_at(bytes, 32), born_ns: i64::from_le_bytes(array_at(bytes, 40)) };
        Ok(Self { unit, salt, identity })
    }
}

impl Anchor {
    /// Where it lies: two places in turn, so that one that is torn leaves the other.
    pub fn position(&self, header: &Header) -> u64 {
        u64::from(header.unit) * (2 - self.counter % 2)
    }

    /// Its bytes.
    pub fn encode(&self, salt: &Salt) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        put(&mut bytes, 0, &ANCHOR_MAGIC);
        put(&mut bytes, 8, &self.counter.to_le_bytes());
        put(&mut bytes, 16, &self.start.to_le_bytes());
        put(&mut bytes, 24, &self.sequence.to_le_bytes());
        put(&mut bytes, 32, &self.file_len.to_le_bytes());
        seal(&mut bytes, salt);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self, Malformed> {
        let bytes: &[u8; HEAD] = head(bytes)?;
        if bytes[..4] != ANCHOR_MAGIC {
            return Err(Malformed::Magic);
        }
        check(bytes, &header.salt)?;
        zero(&bytes[4..8], "bytes 4 to 8 of an anchor")?;
        zero(&bytes[40..CHECKSUM_AT], "bytes 40 to 60 of an anchor")?;
        let anchor = Self {
            counter: u64_at(bytes, 8),
            start: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            file_len: u64_at(bytes, 32),
        };
        if anchor.start < header.base() || !anchor.start.is_multiple_of(u64::from(header.unit)) {
            return Err(Malformed::Unknown("an anchor's start"));
        }
        Ok(anchor)
    }
}

impl Entry {
    /// Its bytes.
    pub fn encode(&self, salt: &Salt) -> [u8; HEAD] {
        let (kind, value) = match self.kind {
            Kind::Part => (1, 0),
            Kind::Commit { file_len } => (2, file_len),
            Kind::Jump { to } => (3, to),
        };
        let mut bytes = [0; HEAD];
        put(&mut bytes, 0, &ENTRY_MAGIC);
        bytes[4] = kind;
        bytes[5] = u8::from(self.begins);
        put(&mut bytes, 8, &self.position.to_le_bytes());
        put(&mut bytes, 16, &self.sequence.to_le_bytes());
        put(&mut bytes, 24, &self.previous.to_le_bytes());
        put(&mut bytes, 32, &self.durable_commit.to_le_bytes());
        put(&mut bytes, 40, &value.to_le_bytes());
        put(&mut bytes, 48, &self.records.to_le_bytes());
        seal(&mut bytes, salt);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self, Malformed> {
        let bytes: &[u8; HEAD] = head(bytes)?;
        if bytes[..4] != ENTRY_MAGIC {
            return Err(Malformed::Magic);
        }
        check(bytes, &header.salt)?;
        zero(&bytes[6..8], "bytes 6 to 8 of an entry")?;
        zero(&bytes[52..CHECKSUM_AT], "bytes 52 to 60 of an entry")?;
        let value = u64_at(bytes, 40);
        let records = u32_at(bytes, 48);
        let kind = match bytes[4] {
            1 if value == 0 => Kind::Part,
            2 => Kind::Commit { file_len: value },
            3 if records == 0 && value >= header.base() && value.is_multiple_of(u64::from(header.unit)) => {
                Kind::Jump { to: value }
            }
            1 => return Err(Malformed::Unknown("the value of a part")),
            3 => return Err(Malformed::Unknown("a jump's destination or records")),
            _ => return Err(Malformed::Unknown("the kind of an entry")),
        };
        let begins = match bytes[5] {
            0 => false,
            1 if !matches!(kind, Kind::Jump { .. }) => true,
            _ => return Err(Malformed::Unknown("the flags of an entry")),
        };
        Ok(Self {
            kind,
            begins,
            position: u64_at(bytes, 8),
            sequence: u64_at(bytes, 16),
            previous: u64_at(bytes, 24),
            durable_commit: u64_at(bytes, 32),
            records,
        })
    }

    /// Bytes it takes in a journal: head and records, rounded up to whole units.
    pub fn size(&self, header: &Header) -> u64 {
        (HEAD as u64 + u64::from(self.records)).next_multiple_of(u64::from(header.unit))
    }
}

impl Record {
    /// Bytes of data that follow its head, the zeros after it not counted.
    pub fn data_len(&self) -> usize {
        match self {
            Self::Data { len, .. } => *len as usize,
            Self::Length(_) => 0,
        }
    }

    /// Bytes it takes: head, data, and zeros up to a multiple of 8.
    pub fn size(&self) -> usize {
        RECORD + self.data_len().next_multiple_of(8)
    }

    /// Appends head, data and zeros to `to`, as a record of the entry with the number `sequence`.
    ///
    /// # Panics
    /// When `data` is not as long as the record says.
    pub fn append(&self, to: &mut Vec<u8>, data: &[u8], sequence: u64, salt: &Salt) {
        assert_eq!(data.len(), self.data_len(), "a record's data has the length that it says");
        let copied = self.append_with(to, sequence, salt, |slot| {
            slot.copy_from_slice(data);
            Ok::<(), std::convert::Infallible>(())
        });
        copied.unwrap_or_else(|never| match never {});
    }

    /// As [`append`](Self::append), with the data put in its place by `fill`. The checksum is that of what is there then, so that
    /// data that changes while it is copied is recorded as it was copied.
    ///
    /// # Errors
    /// What `fill` returns: nothing was appended.
    pub fn append_with<E>(
        &self,
        to: &mut Vec<u8>,
        sequence: u64,
        salt: &Salt,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = [0; RECORD];
        let (value, len, kind) = match *self {
            Self::Data { offset, len } => (offset, len, 1),
            Self::Length(len) => (len, 0, 2),
        };
        put(&mut bytes, 0, &value.to_le_bytes());
        put(&mut bytes, 8, &len.to_le_bytes());
        bytes[12] = kind;
        let at = to.len();
        to.resize(at + RECORD + self.data_len(), 0);
        let data = &mut to[at + RECORD..];
        if let Err(error) = fill(data) {
            to.truncate(at);
            return Err(error);
        }
        let sum = record_checksum(&bytes, data, sequence, salt);
        put(&mut bytes, 20, &sum.to_le_bytes());
        to[at..at + RECORD].copy_from_slice(&bytes);
        to.resize(to.len().next_multiple_of(8), 0);
        Ok(())
    }

    /// Reads the head of a record; its checksum is looked at by [`Record::verify`], when the data is there.
    ///
    /// # Errors
    /// [`Malformed`]. Nothing is known to be right yet, so [`Malformed::Unknown`] may be damage too.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(bytes) = bytes.first_chunk::<RECORD>() else { return Err(Malformed::Short) };
        zero(&bytes[13..20], "bytes 13 to 20 of a record")?;
        let (value, len) = (u64_at(bytes, 0), u32_at(bytes, 8));
        match bytes[12] {
            1 if len == 0 || u64::from(len) > PAGE - value % PAGE => {
                Err(Malformed::Unknown("a record that crosses a page"))
            }
            1 if value.checked_add(u64::from(len)).is_none() => {
                Err(Malformed::Unknown("a record past the end of files"))
            }
            1 => Ok(Self::Data { offset: value, len }),
            2 if len == 0 => Ok(Self::Length(value)),
            2 => Err(Malformed::Unknown("a change of length with data")),
            _ => Err(Malformed::Unknown("the kind of a record")),
        }
    }

    /// Looks whether head and data, in one slice, are those that were written.
    ///
    /// # Errors
    /// [`Malformed::Short`] or [`Malformed::Checksum`].
    pub fn verify(bytes: &[u8], data_len: usize, sequence: u64, salt: &Salt) -> Result<(), Malformed> {
        let Some((head, rest)) = bytes.split_first_chunk::<RECORD>() else { return Err(Malformed::Short) };
        let data = rest.get(..data_len).ok_or(Malformed::Short)?;
        if record_checksum(head, data, sequence, salt) == u32_at(head, 20) {
            Ok(())
        } else {
            Err(Malformed::Checksum)
        }
    }
}

fn record_checksum(head: &[u8; RECORD], data: &[u8], sequence: u64, salt: &Salt) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&salt.0), &sequence.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &head[..20]), data)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn head(bytes: &[u8]) -> Result<&[u8; HEAD], Malformed> {
    bytes.first_chunk().ok_or(Malformed::Short)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn sum(bytes: &[u8; HEAD], salt: &Salt) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.0), &bytes[..CHECKSUM_AT])
}

fn seal(bytes: &mut [u8; HEAD], salt: &Salt) {
    let sum = sum(bytes, salt);
    put(bytes, CHECKSUM_AT, &sum.to_le_bytes());
}

fn check(bytes: &[u8; HEAD], salt: &Salt) -> Result<(), Malformed> {
    if sum(bytes, salt) == u32_at(bytes, CHECKSUM_AT) { Ok(()) } else { Err(Malformed::Checksum) }
}

fn zero(bytes: &[u8], what: &'static str) -> Result<(), Malformed> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Malformed::Unknown(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt(*b"sixteen bytes ..");

    fn header() -> Header {
        Header { unit: 4096, salt: SALT, identity: Identity { inode: 7, born_ns: -3 } }
    }

    fn entries() -> [Entry; 3] {
        [Kind::Part, Kind::Commit { file_len: 99 }, Kind::Jump { to: 8 * 4096 }].map(|kind| Entry {
            kind,
            begins: kind == Kind::Part,
            position: 3 * 4096,
            sequence: 5,
            previous: 4,
            durable_commit: 3,
            records: if matches!(kind, Kind::Jump { .. }) { 0 } else { 24 },
        })
    }

    const ANCHOR: Anchor = Anchor { counter: 2, start: 4 * 4096, sequence: 6, file_len: 1 };

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        assert_eq!(Anchor::decode(&ANCHOR.encode(&SALT), &header()), Ok(ANCHOR));
        for entry in entries() {
            assert_eq!(Entry::decode(&entry.encode(&SALT), &header()), Ok(entry));
        }
        for (record, data) in
            [(Record::Data { offset: 4090, len: 6 }, &b"abcdef"[..]), (Record::Length(7), b"")]
        {
            let mut bytes = Vec::new();
            record.append(&mut bytes, data, 5, &SALT);
            assert_eq!((Record::decode(&bytes), bytes.len()), (Ok(record), record.size()));
            assert_eq!(Record::verify(&bytes, data.len(), 5, &SALT), Ok(()));
            assert_eq!(Record::verify(&bytes, data.len(), 6, &SALT), Err(Malformed::Checksum));
        }
    }

    /// The bytes themselves: a change of the format must be a change of the version.
    #[test]
    fn the_layout_is_that_of_the_document() {
        let bytes = header().encode();
        assert_eq!(bytes[..16], *b"\x89MWJ\r\n\x1a\n\x01\0\0\0\0\x10\0\0");
        assert_eq!(bytes[32..52], *b"\x07\0\0\0\0\0\0\0\xfd\xff\xff\xff\xff\xff\xff\xff\0\x10\0\0");
        assert_eq!(u32_at(&bytes, 60), crc32c::crc32c(&[&SALT.0, &bytes[..60]].concat()));
        let bytes = ANCHOR.encode(&SALT);
        assert_eq!((bytes[..8].to_vec(), u64_at(&bytes, 16)), (b"MWan\0\0\0\0".to_vec(), 4 * 4096));
        assert_eq!(
            (ANCHOR.position(&header()), Anchor { counter: 1, ..ANCHOR }.position(&header())),
            (8192, 4096)
        );
        let bytes = entries()[1].encode(&SALT);
        assert_eq!(
            (bytes[..8].to_vec(), u64_at(&bytes, 40), bytes[48]),
            (b"MWen\x02\0\0\0".to_vec(), 99, 24)
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let flips = |bytes: &[u8], is_refused: &dyn Fn(&[u8]) -> bool| {
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(is_refused(&flipped), "bit {bit} of {bytes:?}");
            }
        };
        flips(&header().encode(), &|bytes| Header::decode(bytes).is_err());
        flips(&ANCHOR.encode(&SALT), &|bytes| Anchor::decode(bytes, &header()).is_err());
        for entry in entries() {
            flips(&entry.encode(&SALT), &|bytes| Entry::decode(bytes, &header()).is_err());
        }
        let mut bytes = Vec::new();
        Record::Data { offset: 0, len: 16 }.append(&mut bytes, &[3; 16], 1, &SALT);
        flips(&bytes, &|bytes| {
            Record::decode(bytes).is_err() || Record::verify(bytes, 16, 1, &SALT).is_err()
        });
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let sealed = |mut bytes: [u8; HEAD], at: usize, value: u8| {
            bytes[at] = value;
            seal(&mut bytes, &SALT);
            bytes
        };
        assert_eq!(Header::decode(&sealed(header().encode(), 8, 2)), Err(Malformed::Version(2)));
        for at in [12, 13, 49, 52, 59] {
            let decoded = Header::decode(&sealed(header().encode(), at, 3));
            assert!(matches!(decoded, Err(Malformed::Unknown(_))), "{at}");
        }
        for at in [4, 16, 40, 59] {
            let decoded = Anchor::decode(&sealed(ANCHOR.encode(&SALT), at, 1), &header());
            assert!(matches!(decoded, Err(Malformed::Unknown(_))), "{at}");
        }
        for (entry, at) in [(0, 4), (0, 5), (0, 40), (2, 40), (2, 48), (1, 52)] {
            let decoded = Entry::decode(&sealed(entries()[entry].encode(&SALT), at, 9), &header());
            assert!(matches!(decoded, Err(Malformed::Unknown(_))), "{entry} {at}");
        }
        let mut bytes = Vec::new();
        Record::Data { offset: 4000, len: 96 }.append(&mut bytes, &[3; 96], 1, &SALT);
        for (at, value) in [(12, 0), (12, 3), (13, 1), (8, 97), (8, 0), (12, 2)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert!(matches!(Record::decode(&bytes), Err(Malformed::Unknown(_))), "{at}");
        }
    }

    /// Neither short nor random bytes make a decoder panic, nor are they taken for something.
    #[test]
    fn random_bytes_are_refused() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        for round in 0..20_000 {
            let mut bytes: Vec<u8> = (0..round % 90).map(|_| random()).collect();
            let begin: &[u8] = [&HEADER_MAGIC[..], &ANCHOR_MAGIC, &ENTRY_MAGIC][round % 3];
            if round % 2 == 0 && bytes.len() >= begin.len() {
                bytes[..begin.len()].copy_from_slice(begin);
            }
            assert!(Header::decode(&bytes).is_err());
            assert!(Anchor::decode(&bytes, &header()).is_err());
            assert!(Entry::decode(&bytes, &header()).is_err());
            if let Ok(record) = Record::decode(&bytes) {
                assert!(Record::verify(&bytes, record.data_len(), 1, &SALT).is_err());
            }
        }
    }
}
