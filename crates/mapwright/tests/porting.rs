//! A program written for memmap2, compiled three times: with memmap2, with `mapwright::mmap` by a change of the `use` line, and by hand
//! for the pager. All three see the same and leave the same file.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;

const LENGTH: usize = 20_000;

/// What a program has seen, in order.
type Seen = Vec<(&'static str, u64)>;

/// The program, with nothing but what is imported left open.
macro_rules! program {
    ($name:ident, $($import:item)*) => {
        mod $name {
            use super::*;
            $($import)*

            pub fn run(path: &Path) -> Result<Seen, Box<dyn Error>> {
                let mut seen = Seen::new();
                let file = File::open(path)?;
                // SAFETY: nobody else changes the file, which is the test's own.
                let map = unsafe { Mmap::map(&file)? };
                map.advise(Advice::Random)?;
                seen.push(("length", map.len() as u64));
                seen.push(("sum", sum(&map)));
                // SAFETY: as above.
                let part = unsafe { MmapOptions::new().offset(8193).len(100).map(&file)? };
                seen.push(("part", sum(&part)));
                // SAFETY: as above; the copy is private.
                let mut copy = unsafe { MmapOptions::new().map_copy(&file)? };
                copy[0] = 200;
                seen.push(("copy", sum(&copy)));
                let copy = copy.make_read_only()?;
                seen.push(("copy, read only", u64::from(copy[0])));
                seen.push(("original", u64::from(map[0])));
                drop((map, part, copy));

                let file = File::options().read(true).write(true).open(path)?;
                file.set_len(30_000)?;
                // SAFETY: as above; no other mapping of the file is left.
                let mut map = unsafe { MmapMut::map_mut(&file)? };
                map[..5].copy_from_slice(b"hello");
                map[29_995..].copy_from_slice(b"added");
                map.flush()?;
                map.lock()?;
                map.unlock()?;
                seen.push(("grown", sum(&map)));

                let mut memory = MmapOptions::new().len(10_000).map_anon()?;
                memory.copy_from_slice(&map[..10_000]);
                let memory = memory.make_read_only()?;
                seen.push(("memory", sum(&memory)));
                Ok(seen)
            }
        }
    };
}

program!(before, use memmap2::{Advice, Mmap, MmapMut, MmapOptions};);
program!(renamed, use mapwright::mmap::{Advice, MapAssumed, MapAssumedWith, Mmap, MmapMut, MmapOptions};);

/// The same by the pager: no unsafe code, no descriptor, and errors where there was SIGBUS.
mod paged {
    use super::*;
    use mapwright::mmap::MmapMut;
    use mapwright::{Advice, Map, MapMut, MapOptions};

    pub fn run(path: &Path) -> Result<Seen, Box<dyn Error>> {
        let mut seen = Seen::new();
        let map = Map::open(path)?;
        map.advise(Advice::Random)?;
        seen.push(("length", map.len() as u64));
        seen.push(("sum", map.checked(sum)?));
        let part = MapOptions::new().range(8193..8293).open(path)?;
        seen.push(("part", sum(&part)));
        let mut copy = MmapMut::map_anon(map.len())?; // what is private is memory of one's own
        map.read_at(0, &mut copy)?;
        copy[0] = 200;
        seen.push(("copy", sum(&copy)));
        let copy = copy.make_read_only()?;
        seen.push(("copy, read only", u64::from(copy[0])));
        seen.push(("original", u64::from(map[0])));
        drop((map, part, copy));

        let mut map = MapMut::open(path)?;
        map.resize(30_000)?;
        map[..5].copy_from_slice(b"hello");
        map[29_995..].copy_from_slice(b"added");
        map.flush()?;
        seen.push(("grown", sum(&map)));

        let mut memory = MmapMut::map_anon(10_000)?;
        memory.copy_from_slice(&map[..10_000]);
        let memory = memory.make_read_only()?;
        seen.push(("memory", sum(&memory)));
        map.close()?;
        Ok(seen)
    }
}

/// A sum in which places count.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

#[test]
fn a_program_is_ported_by_renaming() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let outcome = |name: &str, run: fn(&Path) -> Result<Seen, Box<dyn Error>>| {
        let path = dir.path().join(name);
        fs::write(&path, (0..LENGTH).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        (run(&path).unwrap(), fs::read(&path).unwrap())
    };
    let before = outcome("before", before::run);
    assert_eq!((before.0.len(), before.1.len()), (8, 30_000));
    assert_eq!(outcome("renamed", renamed::run), before);
    assert_eq!(outcome("paged", paged::run), before);
}
