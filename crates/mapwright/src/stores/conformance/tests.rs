//! The checks against stores that are right in unusual ways, which must pass, and against stores that each break one
//! clause, which must not: a check that can't fail is no check.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::stores::{MemoryStore, ReadDone, WriteDone};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    // Right, but not what a careless caller expects.
    None,
    ShortReadsAndWrites,
    TransientErrors,
    ReadOnly,
    ReadOnlyDefaults,
    // Clause 1, one read.
    ReadsOneByteOff,
    EndsAtTheLastWholePage,
    ReadsPastTheEnd,
    FailsPastTheEnd,
    FailsAtHugeOffsets,
    ClaimsMoreThanItRead,
    // Clause 1, batches.
    ForgetsTheLastOfABatch,
    StopsAt64,
    CallsDoneTwice,
    MixesUpIndices,
    HandsOutPartOfTheBuffer,
    FailsABatchPastTheEnd,
    WritesToBuffersLater,
    // Clause 2.
    WritesOneByteOff,
    WritesNothing,
    ClaimsMoreThanItWrote,
    ReadsAlignedFromBeforeTheWrite,
    ExtendsForAnEmptyWrite,
    ForgetsTheLastWriteOfABatch,
    ReportsAWriteTwice,
    MixesUpWrites,
    CutsABatchToWholePages,
    // Clause 3.
    SyncFails,
    SyncForgets,
    // Clause 4.
    GapIsNotZero,
    RefusesWritesPastTheEnd,
    CutsNothing,
    GrowsNothing,
    CutBytesComeBack,
    LengthIsRounded,
    // Clause 5.
    VersionIgnoresWrites,
    VersionIgnoresLength,
    VersionChangesByReading,
    IdentityChanges,
    // Clause 6.
    LosesConcurrentWrites,
    SharesACursor,
    // Clause 7.
    PanicsInTheMiddle,
    IsTransientForEver,
    // Clause 9.
    WritesAlthoughReadOnly,
    RefusesAndWritesAllTheSame,
    RefusesWithAnotherError,
    // Clause 10.
    LocksOnlyOnce,
}

use Fault::*;

/// A store in memory with one fault.
struct Faulty {
    fault: Fault,
    right: MemoryStore,
    calls: AtomicU64,
    cursor: AtomicU64,
    /// The contents at first, or what was cut off.
    old: Mutex<Vec<u8>>,
    first: Version,
}

impl Faulty {
    fn new(fault: Fault, contents: &[u8]) -> Self {
        let right = MemoryStore::new(contents.to_vec());
        let first = right.version().unwrap();
        let old = Mutex::new(contents.to_vec());
        Self { fault, right, calls: AtomicU64::new(0), cursor: AtomicU64::new(0), old, first }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn len(&self) -> u64 {
        self.right.version().unwrap().len
    }

    /// Fails every second call in one of the transient ways.
    fn stumble(&self) -> io::Result<()> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.is(IsTransientForEver) || self.is(TransientErrors) && calls.is_multiple_of(2) {
            let kinds = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
            return Err(kinds[calls as usize / 2 % 3].into());
        }
        Ok(())
    }
}

impl Store for Faulty {
    fn name(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn version(&self) -> io::Result<Version> {
        self.stumble()?;
        let mut version = self.right.version()?;
        match self.fault {
            LengthIsRounded => version.len = version.len.next_multiple_of(4096),
            VersionIgnoresWrites if version.len == self.first.len => version = self.first,
            VersionIgnoresLength => version.len = self.first.len,
            VersionChangesByReading => version.modification += u128::from(self.calls.load(Ordering::Relaxed)),
            IdentityChanges => version.identity += version.modification,
            _ => {}
        }
        Ok(version)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.stumble()?;
        let len = self.len();
        match self.fault {
            ShortReadsAndWrites => {
                let short = buf.len().div_ceil(2).min(1000);
                self.right.read_at(offset, &mut buf[..short])
            }
            ReadsOneByteOff => self.right.read_at(offset.saturating_add(1), buf),
            EndsAtTheLastWholePage if offset >= len / 4096 * 4096 => Ok(0),
            ReadsPastTheEnd if offset >= len => {
                buf.fill(0);
                Ok(buf.len())
            }
            FailsPastTheEnd if offset > len => Err(io::ErrorKind::UnexpectedEof.into()),
            FailsAtHugeOffsets if offset > i64::MAX as u64 => Err(io::ErrorKind::InvalidInput.into()),
            ClaimsMoreThanItRead => self.right.read_at(offset, buf).map(|read| read * 2),
            ReadsAlignedFromBeforeTheWrite if (offset | buf.len() as u64).is_multiple_of(4096) => {
                let old = self.old.lock().unwrap();
                let rest = old.get(offset as usize..).unwrap_or(&[]);
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
            PanicsInTheMiddle if offset == 4097 => panic!("a store that panics (a test wants it to)"),
            SharesACursor => {
                self.cursor.store(offset, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(20));
                self.right.read_at(self.cursor.load(Ordering::SeqCst), buf)
            }
            _ => self.right.read_at(offset, buf),
        }
    }

    fn read_many(&self, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
        let count = reads.len();
        for (index, read) in reads.iter_mut().enumerate() {
            let result = match self.fault {
                FailsABatchPastTheEnd if read.offset > self.len() => Err(io::ErrorKind::InvalidInput.into()),
                _ => self.read_at(read.offset, read.buf),
            };
            match self.fault {
                ForgetsTheLastOfABatch if index + 1 == count => {}
                StopsAt64 if index >= 64 => {}
                CallsDoneTwice if index == 3 => {
                    done(index, read.buf, Ok(*result.as_ref().unwrap()));
                    done(index, read.buf, result);
                }
                MixesUpIndices => done(index ^ usize::from(count > 1 && index < 2), read.buf, result),
                HandsOutPartOfTheBuffer => {
                    let part = result.as_ref().map_or(0, |read| *read);
                    done(index, &mut read.buf[..part], result);
                }
                _ => done(index, read.buf, result),
            }
        }
        if self.is(WritesToBuffersLater) {
            reads[0].buf[..1].fill(0);
        }
    }

    fn is_writable(&self) -> bool {
        !matches!(
            self.fault,
            ReadOnly | WritesAlthoughReadOnly | RefusesAndWritesAllTheSame | RefusesWithAnotherError
        )
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        self.stumble()?;
        let end = offset + buf.len() as u64;
        match self.fault {
            ShortReadsAndWrites if !buf.is_empty() => {
                self.right.write_at(offset, &buf[..buf.len().div_ceil(3)])
            }
            ReadOnly => Err(io::ErrorKind::PermissionDenied.into()),
            RefusesWithAnotherError => Err(io::ErrorKind::Unsupported.into()),
            RefusesAndWritesAllTheSame => {
                self.right.write_at(offset, buf)?;
                Err(io::ErrorKind::PermissionDenied.into())
            }
            WritesOneByteOff => self.right.write_at(offset + 1, buf),
            WritesNothing => Ok(0),
            ClaimsMoreThanItWrote => self.right.write_at(offset, buf).map(|wrote| wrote + 1),
            ExtendsForAnEmptyWrite if buf.is_empty() && offset > self.len() => {
                self.right.set_len(offset).map(|()| 0)
            }
            GapIsNotZero if offset > self.len() && !buf.is_empty() => {
                let len = self.len();
                self.right.write_at(len, &vec![0xff; (offset - len) as usize])?;
                self.right.write_at(offset, buf)
            }
            RefusesWritesPastTheEnd if end > self.len() && !buf.is_empty() => {
                Err(io::ErrorKind::InvalidInput.into())
            }
            LosesConcurrentWrites if !buf.is_empty() => {
                // Read, modify, write, with time for somebody else in between.
                let start = offset / 4096 * 4096;
                let mut pages = vec![0; (end - start).next_multiple_of(4096) as usize];
                let read = self.right.read_at(start, &mut pages)?;
                std::thread::sleep(Duration::from_micros(100));
                let at = (offset - start) as usize;
                pages[at..at + buf.len()].copy_from_slice(buf);
                pages.truncate(read.max(at + buf.len()));
                self.right.write_at(start, &pages)?;
                Ok(buf.len())
            }
            _ => self.right.write_at(offset, buf),
        }
    }

    fn write_many(&self, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
        for (index, write) in writes.iter().enumerate() {
            let other = match self.fault {
                MixesUpWrites if writes.len() > 1 && index < 2 => index ^ 1,
                _ => index,
            };
            let whole = write.buf.len() / 4096 * 4096;
            let result = match self.fault {
                CutsABatchToWholePages if whole > 0 => {
                    self.write_at(write.offset, &write.buf[..whole]).map(|_| write.buf.len())
                }
                _ => self.write_at(writes[other].offset, write.buf),
            };
            match self.fault {
                ForgetsTheLastWriteOfABatch if index + 1 == writes.len() => {}
                ReportsAWriteTwice if index == 3 => {
                    done(index, Ok(*result.as_ref().unwrap()));
                    done(index, result);
                }
                _ => done(index, result),
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.stumble()?;
        match self.fault {
            ReadOnly | RefusesAndWritesAllTheSame => Err(io::ErrorKind::PermissionDenied.into()),
            CutsNothing if len < self.len() => Ok(()),
            GrowsNothing if len > self.len() => Ok(()),
            CutBytesComeBack => {
                let was = self.right.contents();
                let mut old = self.old.lock().unwrap();
                if was.len() > old.len() || !old.starts_with(&was) {
                    *old = was.clone();
                }
                self.right.set_len(len)?;
                let back = old.get(was.len()..old.len().min(len as usize)).unwrap_or(&[]);
                self.right.write_at(was.len() as u64, back).map(|_| ())
            }
            _ => self.right.set_len(len),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.stumble()?;
        match self.fault {
            SyncFails => Err(io::ErrorKind::StorageFull.into()),
            SyncForgets => {
                self.right.replace(self.old.lock().unwrap().clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> io::Result<()> {
        if self.is(LocksOnlyOnce) && self.calls.fetch_add(1, Ordering::Relaxed) > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

/// A store that implements only what it must.
struct Minimal(MemoryStore);

impl Store for Minimal {
    fn name(&self) -> String {
        "minimal".into()
    }
    fn version(&self) -> io::Result<Version> {
        self.0.version()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }
}

fn run(fault: Fault) -> std::thread::Result<()> {
    catch_unwind(|| {
        check(|contents| match fault {
            ReadOnlyDefaults => Box::new(Minimal(MemoryStore::new(contents.to_vec()))),
            _ => Box::new(Faulty::new(fault, contents)),
        });
    })
}

#[test]
fn right_stores_pass() {
    for right in [None, ShortReadsAndWrites, TransientErrors, ReadOnly, ReadOnlyDefaults] {
        assert!(run(right).is_ok(), "{right:?} is within the contract");
    }
}

#[test]
fn each_fault_is_caught_by_its_clause() {
    let faults: &[(u8, &[Fault])] = &[
        (
            1,
            &[
                ReadsOneByteOff,
                EndsAtTheLastWholePage,
                ReadsPastTheEnd,
                FailsPastTheEnd,
                FailsAtHugeOffsets,
                ClaimsMoreThanItRead,
                ForgetsTheLastOfABatch,
                StopsAt64,
                CallsDoneTwice,
                MixesUpIndices,
                HandsOutPartOfTheBuffer,
                FailsABatchPastTheEnd,
                WritesToBuffersLater,
            ],
        ),
        (
            2,
            &[
                WritesOneByteOff,
                WritesNothing,
                ClaimsMoreThanItWrote,
                ReadsAlignedFromBeforeTheWrite,
                ExtendsForAnEmptyWrite,
                ForgetsTheLastWriteOfABatch,
                ReportsAWriteTwice,
                MixesUpWrites,
                CutsABatchToWholePages,
            ],
        ),
        (3, &[SyncFails, SyncForgets]),
        (4, &[GapIsNotZero, RefusesWritesPastTheEnd, CutsNothing, GrowsNothing, CutBytesComeBack]),
        (
            5,
            &[
                LengthIsRounded,
                VersionIgnoresWrites,
                VersionIgnoresLength,
                VersionChangesByReading,
                IdentityChanges,
            ],
        ),
        (6, &[LosesConcurrentWrites, SharesACursor]),
        (7, &[PanicsInTheMiddle, IsTransientForEver]),
        (9, &[WritesAlthoughReadOnly, RefusesAndWritesAllTheSame, RefusesWithAnotherError]),
        (10, &[LocksOnlyOnce]),
    ];
    for (number, faults) in faults {
        for fault in *faults {
            let panic = run(*fault).expect_err(&format!("{fault:?} was not caught"));
            let message = panic.downcast_ref::<String>().expect("a message");
            assert!(message.contains("of the Store contract is violated"), "{fault:?}: {message}");
            println!("{fault:?} (clause {number}): {message}");
            assert!(
                message.starts_with(&format!("clause {number} ")),
                "{fault:?}, clause {number}: {message}"
            );
        }
    }
}
