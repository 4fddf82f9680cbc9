//! The other side: `mapwright::mmap`. Bytes are read and written as its users do it; where its types have no way to an access,
//! the case tries it by the address.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use mapwright::Error;
use mapwright::mmap::{
    Advice, MapAssumedWith, MemoryFile, Mmap, MmapExec, MmapMut, MmapNone, MmapOptions, MmapRaw, MmapRawRead,
    Refused, Reservation, Resize, SharedMemory, SharedMemoryOptions,
};

use crate::side::{Extra, Of, Outcome, Prot, Shm, Side, name_of, peek, poke};

enum Any {
    Read(Mmap),
    Mut(MmapMut),
    Exec(MmapExec),
    None(MmapNone),
    Raw(MmapRaw),
    RawRead(MmapRawRead),
    /// In the middle of a change, or unmapped in part.
    Gone,
}

macro_rules! on {
    ($any:expr, $map:ident => $call:expr) => {
        match $any {
            Any::Read($map) => $call,
            Any::Mut($map) => $call,
            Any::Exec($map) => $call,
            Any::None($map) => $call,
            Any::Raw($map) => $call,
            Any::RawRead($map) => $call,
            Any::Gone => panic!("the case has unmapped a part of it"),
        }
    };
}

pub struct Ours {
    dir: tempfile::TempDir,
    maps: Vec<Any>,
    /// What is left of those unmapped in part.
    rests: Vec<Any>,
    reservation: Option<Reservation>,
}

impl Ours {
    pub fn new() -> Self {
        Self { dir: crate::common::scratch(), maps: Vec::new(), rests: Vec::new(), reservation: None }
    }

    fn add(&mut self, map: Any) -> usize {
        self.maps.push(map);
        self.maps.len() - 1
    }

    fn change<T>(&mut self, map: usize, change: impl FnOnce(Any) -> (Any, Outcome<T>)) -> Outcome<T> {
        let before = std::mem::replace(&mut self.maps[map], Any::Gone);
        let (after, outcome) = change(before);
        self.maps[map] = after;
        outcome
    }
}

/// The number that the kernel would have given, of an error that has none.
fn class(error: &Error) -> String {
    match error {
        _ if error.errno().is_some() => name_of(error.errno().unwrap()),
        Error::ReadOnly { .. } => "EACCES".into(),
        Error::Invalid { .. } => "EINVAL".into(),
        Error::NotMappable { .. } => "ENODEV".into(),
        Error::OutOfRange { .. } => "out of range".into(),
        Error::Locked { .. } => "EBUSY".into(),
        Error::NotTrusted { .. } => "refused".into(),
        Error::Changed { .. } => "no access".into(),
        other => format!("{other:?}"),
    }
}

fn done<T>(result: Result<T, Error>) -> Outcome<T> {
    result.map_err(|error| class(&error))
}

fn turned<A, B>(result: Result<A, Refused<B>>, to: fn(A) -> Any, back: fn(B) -> Any) -> (Any, Outcome) {
    match result {
        Ok(map) => (to(map), Ok(())),
        Err(refused) => {
            let outcome = Err(class(&refused.error));
            (back(refused.mapping), outcome)
        }
    }
}

impl Side for Ours {
    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn map(&mut self, of: Of<'_>, offset: u64, len: usize, prot: Prot) -> Outcome<usize> {
        let options = MmapOptions::new().offset(offset).len(len);
        let map = match (of, prot) {
            (Of::Anon, Prot::Write) => Any::Mut(done(options.map_anon())?),
            (Of::Anon, Prot::Read) => {
                Any::Read(done(options.map_anon().and_then(|map| Ok(map.make_read_only()?)))?)
            }
            (Of::Anon, Prot::Exec) => {
                Any::Exec(done(options.map_anon().and_then(|map| Ok(map.make_exec()?)))?)
            }
            (Of::Anon, Prot::None) => Any::None(done(options.map_none())?),
            (Of::AnonShared, Prot::Read) => {
                Any::RawRead(done(options.map_anon_shared().and_then(|map| Ok(map.make_read_only()?)))?)
            }
            (Of::AnonShared, _) => Any::Raw(done(options.map_anon_shared())?),
            (Of::Shared(file), Prot::Write) => Any::Raw(done(options.map_raw(file))?),
            (Of::Shared(file), _) => Any::RawRead(done(options.map_raw_read_only(file))?),
            (Of::Private(file), Prot::Write) => Any::Raw(done(options.map_raw_copy(file))?),
            // SAFETY: cases that change the file look at no slice of this kind.
            (Of::Private(file), Prot::Exec) => Any::Exec(done(unsafe { options.map_exec(file) })?),
            (Of::Private(file), prot) => {
                // SAFETY: as above.
                let map = done(unsafe { options.map_copy_read_only(file) })?;
                if prot == Prot::None {
                    Any::None(done(map.make_none().map_err(Error::from))?)
                } else {
                    Any::Read(map)
                }
            }
        };
        Ok(self.add(map))
    }

    fn map_with(&mut self, len: usize, extra: Extra) -> Outcome<usize> {
        let options = MmapOptions::new().len(len);
        let options = match extra {
            Extra::Populate => options.populate(true),
            Extra::NoReserve => options.no_reserve(true),
            Extra::Stack => options.stack(true),
            Extra::Locked => options.locked(true),
            Extra::Huge => options.huge(None),
        };
        let map = done(options.map_anon())?;
        Ok(self.add(Any::Mut(map)))
    }

    fn guarded(&mut self, len: usize) -> Outcome<usize> {
        let map = done(MmapOptions::new().len(len).guard_pages(1).map_anon())?;
        Ok(self.add(Any::Mut(map)))
    }

    fn address(&self, map: usize) -> usize {
        on!(&self.maps[map], map => map.as_ptr() as usize)
    }

    fn read(&self, map: usize, at: usize, len: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; len];
        let no_access = |_| "no access".to_owned();
        match &self.maps[map] {
            Any::Raw(map) if at + len <= map.len() => map.read_at(at, &mut bytes).map_err(no_access)?,
            Any::RawRead(map) if at + len <= map.len() => map.read_at(at, &mut bytes).map_err(no_access)?,
            Any::Read(map) if at + len <= map.len() => return Ok(map[at..at + len].to_vec()),
            Any::Mut(map) if at + len <= map.len() => return Ok(map[at..at + len].to_vec()),
            Any::Exec(map) if at + len <= map.len() => return Ok(map[at..at + len].to_vec()),
            _ => return peek(self.address(map) + at, len),
        }
        Ok(bytes)
    }

    fn write(&mut self, map: usize, at: usize, bytes: &[u8]) -> Outcome {
        match &mut self.maps[map] {
            Any::Raw(map) => map.write_at(at, bytes).map_err(|_| "no access".to_owned()),
            Any::Mut(map) if at + bytes.len() <= map.len() => {
                map[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            _ => poke(self.address(map) + at, bytes),
        }
    }

    fn protect(&mut self, map: usize, prot: Prot) -> Outcome {
        self.change(map, |map| match (map, prot) {
            (Any::Read(map), Prot::Write) => turned(map.make_mut(), Any::Mut, Any::Read),
            (Any::Read(map), Prot::Exec) => turned(map.make_exec(), Any::Exec, Any::Read),
            (Any::Read(map), Prot::None) => turned(map.make_none(), Any::None, Any::Read),
            (Any::Mut(map), Prot::Read) => turned(map.make_read_only(), Any::Read, Any::Mut),
            (Any::Mut(map), Prot::Exec) => turned(map.make_exec(), Any::Exec, Any::Mut),
            (Any::Mut(map), Prot::None) => turned(map.make_none(), Any::None, Any::Mut),
            (Any::Exec(map), Prot::Read) => turned(map.make_read_only(), Any::Read, Any::Exec),
            (Any::Exec(map), Prot::Write) => turned(map.make_mut(), Any::Mut, Any::Exec),
            (Any::Exec(map), Prot::None) => turned(map.make_none(), Any::None, Any::Exec),
            (Any::None(map), Prot::Read) => turned(map.make_read_only(), Any::Read, Any::None),
            (Any::None(map), Prot::Write) => turned(map.make_mut(), Any::Mut, Any::None),
            (Any::None(map), Prot::Exec) => turned(map.make_exec(), Any::Exec, Any::None),
            (Any::Raw(map), Prot::Read) => turned(map.make_read_only(), Any::RawRead, Any::Raw),
            (Any::RawRead(map), Prot::Write) => turned(map.make_mut(), Any::Raw, Any::RawRead),
            (map, prot) => (map, Err(format!("{prot:?} is no change that the types have"))),
        })
    }

    fn unmap(&mut self, map: usize, range: Range<usize>) -> Outcome {
        fn parts<M>(
            result: Result<(M, M), Refused<M>>,
            any: fn(M) -> Any,
            rests: &mut Vec<Any>,
        ) -> (Any, Outcome) {
            match result {
                Ok((front, back)) => {
                    rests.extend([any(front), any(back)]);
                    (Any::Gone, Ok(()))
                }
                Err(refused) => {
                    let outcome = Err(class(&refused.error));
                    (any(refused.mapping), outcome)
                }
            }
        }
        let mut rests = Vec::new();
        let outcome = self.change(map, |map| match map {
            Any::Read(map) => parts(map.unmap(range), Any::Read, &mut rests),
            Any::Mut(map) => parts(map.unmap(range), Any::Mut, &mut rests),
            Any::Raw(map) => parts(map.unmap(range), Any::Raw, &mut rests),
            Any::RawRead(map) => parts(map.unmap(range), Any::RawRead, &mut rests),
            other => (other, Err("not in this table".to_owned())),
        });
        self.rests.append(&mut rests);
        outcome
    }

    fn sync(&self, map: usize, range: Range<usize>, wait: bool) -> Outcome {
        on!(&self.maps[map], map => done(if wait { map.flush_range(range) } else { map.flush_async_range(range) }))
    }

    fn advise(&self, map: usize, range: Range<usize>, advice: Advice) -> Outcome {
        on!(&self.maps[map], map => done(map.advise_range(range, advice)))
    }

    fn dont_need(&mut self, map: usize, range: Range<usize>) -> Outcome {
        match &mut self.maps[map] {
            Any::Mut(map) => done(map.discard(range)),
            Any::Raw(map) if !map.is_shared() => done(map.discard(range)),
            other => on!(other, map => done(map.release(range))),
        }
    }

    fn remove(&mut self, map: usize, range: Range<usize>) -> Outcome {
        match &mut self.maps[map] {
            Any::Mut(map) => done(map.punch_hole(range)),
            Any::Raw(map) => done(map.punch_hole(range)),
            _ => Err("EACCES".to_owned()), // there is no such method
        }
    }

    fn free_and_write(&mut self, map: usize) -> Outcome {
        self.change(map, |map| match map {
            Any::Mut(map) => match map.free() {
                Ok(freed) => (Any::Mut(freed.reuse()), Ok(())),
                Err(refused) => {
                    let outcome = Err(class(&refused.error));
                    (Any::Mut(refused.mapping), outcome)
                }
            },
            other => (other, Err("EINVAL".to_owned())), // there is no such method
        })
    }

    fn resident(&self, map: usize, range: Range<usize>) -> Outcome<Vec<bool>> {
        let residency = on!(&self.maps[map], map => done(map.residency(range)))?;
        Ok((0..residency.pages()).map(|page| residency.is_resident(page)).collect())
    }

    fn lock(&self, map: usize, on_fault: bool) -> Outcome {
        on!(&self.maps[map], map => done(if on_fault { map.lock_on_fault() } else { map.lock() }))
    }

    fn unlock(&self, map: usize) -> Outcome {
        on!(&self.maps[map], map => done(map.unlock()))
    }

    fn resize(&mut self, map: usize, len: usize, may_move: bool) -> Outcome {
        let how = if may_move { Resize::MayMove } else { Resize::InPlace };
        on!(&mut self.maps[map], map => done(map.resize(len, how)))
    }

    fn place_twice(&mut self, len: usize) -> Outcome<usize> {
        let space = done(Reservation::new(len))?;
        let first = done(MmapOptions::new().len(len).place(&space, 0).map_anon())?;
        self.add(Any::Mut(first));
        let second = MmapOptions::new().len(len).place(&space, 0).map_anon();
        self.reservation = Some(space);
        Ok(self.add(Any::Mut(done(second)?)))
    }

    fn shm(&mut self, name: &str, how: Shm, len: u64) -> Outcome<File> {
        let memory = match how {
            Shm::CreateNew => SharedMemory::create_new(name, len),
            Shm::Open => SharedMemory::open(name),
            Shm::OpenReadOnly => SharedMemoryOptions::new().open_read_only(name),
        };
        let fd = std::os::fd::AsFd::as_fd(&done(memory)?).try_clone_to_owned().unwrap();
        Ok(File::from(fd))
    }

    fn shm_unlink(&mut self, name: &str) -> Outcome {
        done(SharedMemory::unlink(name))
    }

    fn memfd(&mut self, label: &str, len: u64) -> Outcome<File> {
        Ok(File::from(OwnedFd::from(done(MemoryFile::create(label, len))?)))
    }

    fn seal(&mut self, file: &File) -> Outcome {
        let fd = OwnedFd::from(file.try_clone().unwrap());
        let memory = done(MemoryFile::from_fd(fd).map_err(Error::from))?;
        done(memory.seal().map(drop).map_err(Error::from))
    }
}
