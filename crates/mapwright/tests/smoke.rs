//! The first things a user does.
use mapwright::{FaultMode, MapOptions, Pager, Strategy};

fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 4096 * 7 + i % 251) as u8).collect()
}

#[test]
fn reads_more_than_the_budget_in_both_modes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let bytes = contents(8 << 20 | 123);
    std::fs::write(&path, &bytes).unwrap();
    for mode in [FaultMode::Thread, FaultMode::InThread] {
        for block in [4096, 65536] {
            let pager = Pager::builder().budget(1 << 20).build().unwrap();
            let map = MapOptions::new()
                .pager(&pager)
                .strategy(Strategy::Pager)
                .block_size(block)
                .fault_mode(mode)
                .open(&path)
                .unwrap();
            assert!(map[..] == bytes[..]);
            assert!(map.checked(|b| b == &bytes[..]).unwrap());
            for at in [0usize, 4095, 1 << 20, bytes.len() - 5] {
                assert_eq!(map.get(at as u64..at as u64 + 5).unwrap()[..], bytes[at..at + 5]);
            }
            println!("{mode:?} {block} {:?}", pager.stats());
        }
    }
}

#[test]
fn writes_more_than_the_budget() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let mut bytes = contents(4 << 20 | 77);
    std::fs::write(&path, &bytes).unwrap();
    for mode in [FaultMode::Thread, FaultMode::InThread] {
        let pager = Pager::builder().budget(512 << 10).build().unwrap();
        let mut map = MapOptions::new().pager(&pager).fault_mode(mode).open_mut(&path).unwrap();
        for i in (0..bytes.len()).step_by(4096 * 3 / 2) {
            map[i] ^= 0x5a;
            bytes[i] ^= 0x5a;
        }
        assert!(map[..] == bytes[..]);
        map.append(b"tail").unwrap();
        bytes.extend(b"tail");
        map.overwrite(5000, &[9; 20000]).unwrap();
        bytes[5000..25000].fill(9);
        map.flush().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
        println!("{mode:?} {:?}", pager.stats());
        map.close().unwrap();
    }
}
