//! A program in Rust that maps files by the crate memmap2: this test's own binary, as a child.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};

use crate::common::text;
use crate::trial::{MIB, Trial, noise};

const CHILD: &str = "MAPWRIGHT_TEST_MEMMAP2";
const LEN: usize = 8 * MIB + 77;

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn map(file: &File) -> Mmap {
    // SAFETY: the bytes change while the map is there only between the program's own looks at them.
    unsafe { Mmap::map(file) }.unwrap()
}

fn map_mut(file: &File) -> MmapMut {
    // SAFETY: as above.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

/// What the program does; it says what it has seen in lines that begin with "saw".
fn work() {
    let (bytes, file) = (std::fs::read("file").unwrap(), File::open("file").unwrap());
    let whole = map(&file);
    assert!(whole[..] == bytes[..] && whole.len() == LEN);
    // SAFETY: as in `map`.
    let part = unsafe { MmapOptions::new().offset(12_345).len(3 * MIB).map(&file) }.unwrap();
    assert!(part[..] == bytes[12_345..12_345 + 3 * MIB]);
    // SAFETY: as in `map`.
    let populated = unsafe { MmapOptions::new().populate().map(&file) }.unwrap();
    assert!(populated[..] == bytes[..]);
    for advice in [Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::Normal] {
        whole.advise(advice).unwrap();
        assert!(whole[5 * MIB..] == bytes[5 * MIB..]);
    }
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (whole, bytes, file) = (&whole, &bytes, &file);
            scope.spawn(move || {
                for step in 0..200 {
                    let at = (thread * 1_299_709 + step * 104_729) % (LEN - 5000);
                    assert!(whole[at..at + 5000] == bytes[at..at + 5000]);
                }
                assert!(map(file)[..] == bytes[..]);
            });
        }
    });
    println!("saw {} {}", hash(&whole), hash(&part));
    // SAFETY: as in `map`.
    let mut copied = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
    copied[MIB] ^= 1;
    assert!(whole[MIB] == bytes[MIB] && copied[MIB] != bytes[MIB]);
    let mut both = OpenOptions::new().read(true).write(true).open("file").unwrap();
    let mut writable = map_mut(&both);
    writable[2 * MIB..2 * MIB + 4].copy_from_slice(b"here");
    writable.flush_range(2 * MIB, 4).unwrap();
    assert!(whole[2 * MIB..2 * MIB + 4] == *b"here");
    both.write_all(b"at the start").unwrap();
    assert!(whole[..12] == *b"at the start" && writable[..12] == whole[..12]);
    both.set_len(12 * MIB as u64).unwrap();
    let longer = map(&both);
    assert!(longer.len() == 12 * MIB && longer[11 * MIB] == 0 && longer[..MIB] == whole[..MIB]);
    let readonly = writable.make_read_only().unwrap();
    assert!(readonly[2 * MIB..2 * MIB + 4] == *b"here");
    println!("saw {} {}", hash(&longer), hash(&copied));
    drop((longer, readonly, both));
    let again = map(&File::open("file").unwrap());
    println!("saw {}", hash(&again));
}

#[test]
fn a_program_with_memmap2_sees_the_same() {
    if std::env::var_os(CHILD).is_some() {
        return work();
    }
    let own = std::env::current_exe().unwrap();
    let test = "memmap2::a_program_with_memmap2_sees_the_same";
    let child = format!("{CHILD}=1");
    let command = ["env", &child, own.to_str().unwrap(), test, "--exact", "--nocapture", "--test-threads=1"];
    let file = |dir: &Path| std::fs::write(dir.join("file"), noise(3, LEN)).unwrap();
    let trial = Trial::new(&command).on(file).saying(|output| {
        let said = text(&output.stdout);
        let seen: Vec<&str> = said.lines().filter(|line| line.contains("saw ")).collect();
        assert_eq!(seen.len(), 3, "{said}{}", text(&output.stderr));
        seen.join("\n")
    });
    for report in trial.run().into_iter().flatten() {
        // Two and six for reading, one that is copied on write, and one for writing.
        assert!(report.served("/file") > 2 + 6 + 1, "{:#}", report.0);
        report.is_the_kernels("/file", "by the kernel already");
        report.is_the_kernels("/file", "populated");
        report.did_work();
    }
}
