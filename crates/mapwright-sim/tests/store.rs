//! The simulated store keeps the contract of `Store`, fails as told, and loses what a disk may lose.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use mapwright::stores::Store;
use mapwright_sim::{Op, Options, Rng, SimHandle, SimStore, Simulation, StoreOptions};

const EIO: i32 = 5;

fn for_seeds(body: impl Fn(&SimHandle) + Clone + Send + 'static) {
    Simulation::run_seeds(30, &Options::default(), body);
}

/// Does `body` for seeds and gives what it found in all of them.
fn over_seeds<T: Ord + Send + 'static>(body: fn(&SimHandle) -> T) -> BTreeSet<T> {
    let (give, take) = std::sync::mpsc::channel();
    for seed in 0..60 {
        let give = give.clone();
        Simulation::run(seed, &Options::default(), move |sim| give.send(body(sim)).unwrap());
    }
    drop(give);
    take.into_iter().collect()
}

#[test]
fn what_was_written_is_read_and_what_was_synced_survives() {
    for_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 1000], StoreOptions::default());
        assert_eq!(store.write_at(900, &[2; 200]).unwrap(), 200);
        let mut bytes = [0; 400];
        assert_eq!(store.read_at(800, &mut bytes).unwrap(), 300);
        assert_eq!(bytes[..300], [vec![1; 100], vec![2; 200]].concat());
        assert_eq!(store.read_at(1100, &mut bytes).unwrap(), 0);
        assert_eq!(store.crash_image(), [1; 1000]);
        store.sync().unwrap();
        assert_eq!(store.crash_image(), [vec![1; 900], vec![2; 200]].concat());
        assert_eq!(store.version().unwrap().len, 1100);
        store.set_len(10).unwrap();
        assert_eq!(store.contents(), [1; 10]);
    });
}

#[test]
fn planned_errors_come_at_their_call_and_once() {
    for_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 8192], StoreOptions::default());
        store.fail_nth(Op::Read, 1, EIO);
        let read = || store.read_at(0, &mut [0; 16]).map_err(|error| error.raw_os_error());
        assert_eq!([read(), read(), read()], [Ok(16), Err(Some(EIO)), Ok(16)]);
        store.fail_nth(Op::Sync, 0, EIO);
        assert_eq!(store.sync().unwrap_err().raw_os_error(), Some(EIO));
        store.sync().unwrap();
        assert_eq!(store.calls(Op::Read), 3);
    });
}

#[test]
fn nasty_stores_are_short_slow_and_transient_but_not_worse() {
    let kinds = over_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 8192], StoreOptions::nasty());
        let (mut short, mut transient, begun) = (false, false, sim.now());
        for _ in 0..40 {
            match store.read_at(0, &mut [0; 64]) {
                Ok(count) => short |= count < 64,
                Err(error) => {
                    let kind = error.kind();
                    assert!(matches!(
                        kind,
                        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                    ));
                    transient = true;
                }
            }
        }
        assert!(sim.now() - begun > Duration::from_micros(400), "latency");
        (short, transient)
    });
    assert!(kinds.contains(&(true, true)), "{kinds:?}");
}

#[test]
fn a_full_store_says_so_after_a_short_write() {
    for_seeds(|sim| {
        let store = SimStore::new(sim, vec![], StoreOptions { capacity: 100, ..StoreOptions::default() });
        assert_eq!(store.write_at(90, &[1; 20]).unwrap(), 10);
        assert_eq!(store.write_at(100, &[1; 10]).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(store.set_len(101).unwrap_err().kind(), ErrorKind::StorageFull);
    });
}

#[test]
fn a_store_that_hangs_hangs_until_released_and_a_deadlock_dump_names_it() {
    let body = |sim: &SimHandle, release: bool| {
        let store = SimStore::new(sim, vec![1; 16], StoreOptions::default());
        store.hang_nth(Op::Read, 0);
        let reader = sim.spawn("reader", {
            let store = store.clone();
            move || store.read_at(0, &mut [0; 16]).unwrap()
        });
        if release {
            sim.sleep(Duration::from_secs(100));
            store.unhang();
        }
        assert_eq!(reader.join(), 16);
        assert!(sim.now() >= Duration::from_secs(100));
    };
    for_seeds(move |sim| body(sim, true));
    let failure = Simulation::try_run(1, &Options::default(), move |sim| body(sim, false)).unwrap_err();
    assert!(failure.message.contains("reader: hangs in store 1"), "{failure}");
}

#[test]
fn changes_by_others_change_the_version() {
    for_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 100], StoreOptions::default());
        let before = store.version().unwrap();
        assert_eq!(store.version().unwrap(), before);
        store.modify_behind(3, &[9]);
        let modified = store.version().unwrap();
        assert_ne!(modified, before);
        store.truncate_behind(50);
        assert_eq!(store.version().unwrap().len, 50);
        assert_eq!(store.version().unwrap().identity, before.identity);
    });
}

#[test]
fn a_failed_sync_may_lose_writes_now_or_at_a_crash_after_a_good_sync() {
    let fates = over_seeds(|sim| {
        let options = StoreOptions { lossy_failed_sync: true, ..StoreOptions::default() };
        let store = SimStore::new(sim, vec![1; 512], options);
        store.write_at(0, &[2; 512]).unwrap();
        store.fail_nth(Op::Sync, 0, EIO);
        store.sync().unwrap_err();
        store.sync().unwrap();
        (store.contents()[0], store.crash_image()[0])
    });
    assert_eq!(fates, BTreeSet::from([(1, 1), (2, 1), (2, 2)]));
    let fates = over_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 512], StoreOptions::default());
        store.write_at(0, &[2; 512]).unwrap();
        store.fail_nth(Op::Sync, 0, EIO);
        store.sync().unwrap_err();
        store.sync().unwrap();
        (store.contents()[0], store.crash_image()[0])
    });
    assert_eq!(fates, BTreeSet::from([(2, 2)]), "without the option nothing is lost");
}

#[test]
fn a_crash_tears_writes_between_sectors_and_never_inside() {
    let images = over_seeds(|sim| {
        let store = SimStore::new(sim, vec![1; 1024], StoreOptions::default());
        store.write_at(0, &[2; 1024]).unwrap();
        let image = store.torn_crash_image(&mut Rng::stream(sim.seed(), 9));
        assert!(image.chunks(512).all(|sector| sector.iter().all(|&byte| byte == sector[0])));
        (image[0], image[512])
    });
    assert_eq!(images, BTreeSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
}
