//! The stores that come with the library, against real files.

use mapwright::stores::{FileOptions, FileStore, MemoryStore, Read, Store};
use mapwright_sys::buffer::Buffer;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096 * 31 + i * 7) as u8).collect()
}

#[test]
fn a_file_reads_back_directly_and_through_the_cache() {
    let dir = directory();
    let path = dir.path().join("data");
    let bytes = pattern(300 * 4096 + 100);
    std::fs::write(&path, &bytes).unwrap();
    for direct in [false, true] {
        let store = FileStore::open(&path, &FileOptions { write: false, direct }).unwrap();
        assert_eq!(store.is_direct(), direct, "the file system of the target directory can do O_DIRECT");
        let mut memory = Buffer::zeroed(301 * 4096);
        let mut reads: Vec<Read<'_>> = memory
            .chunks_exact_mut(4096)
            .enumerate()
            .map(|(page, buf)| Read { offset: page as u64 * 4096, buf })
            .collect();
        let mut ended = 0;
        store.read_many(&mut reads, &mut |index, _, result| {
            assert_eq!(result.unwrap(), if index == 300 { 100 } else { 4096 });
            ended += 1;
        });
        assert_eq!(ended, 301);
        assert_eq!(&memory[..bytes.len()], bytes);
    }
}

#[test]
fn memory_reads_what_was_written() {
    let store = MemoryStore::new(vec![1, 2, 3]);
    assert_eq!(store.write_at(5, &[9]).unwrap(), 1);
    assert_eq!(store.contents(), [1, 2, 3, 0, 0, 9]);
}
