//! Explicit access as futures, on an executor of a few lines.
#![allow(missing_docs)]

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use common::{FaultyStore, MODES, Mishap, PAGE, Rng, block_on, contents, paged, pager, require_userfaultfd};
use mapwright::Error;
use mapwright::stores::Store;

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls all tasks until they are done.
fn run_all(mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let since = Instant::now();
    while !tasks.is_empty() {
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending);
        if !tasks.is_empty() {
            std::thread::park_timeout(Duration::from_millis(500));
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{} tasks are left", tasks.len());
    }
}

#[test]
fn many_tasks_at_once() {
    if !require_userfaultfd() {
        return;
    }
    for (mode, local) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let bytes = contents(200 * PAGE + 9);
        let store = FaultyStore::new(bytes.clone(), local) as Arc<dyn Store>;
        let pager = pager(64 * PAGE as u64);
        let map = paged(&pager, mode).open_store(store).unwrap();
        let (map, bytes) = (&map, &bytes);
        run_all(
            (0..100)
                .map(|seed| {
                    Box::pin(async move {
                        let mut rng = Rng(seed);
                        for _ in 0..5 {
                            let at = rng.below(199 * PAGE as u64);
                            let page = map.get_async(at..at + 50).await.unwrap();
                            assert!(page[..] == bytes[at as usize..at as usize + 50]);
                            drop(page);
                            map.prefetch_async(at..at + 9000.min(200 * PAGE as u64 - at)).await.unwrap();
                        }
                    }) as Pin<Box<dyn Future<Output = ()>>>
                })
                .collect(),
        );
        assert!(map[..] == bytes[..]);
    }
}

/// Together they want far more than the budget, and each holds a part while it waits for the rest.
#[test]
fn tasks_that_compete_for_a_small_budget_all_end() {
    if !require_userfaultfd() {
        return;
    }
    let bytes = contents(200 * PAGE);
    let pager = pager(10 * PAGE as u64);
    let store = FaultyStore::new(bytes.clone(), true) as Arc<dyn Store>;
    let map = paged(&pager, MODES[0]).deadline(Duration::from_secs(15)).open_store(store).unwrap();
    let (map, bytes) = (&map, &bytes);
    run_all(
        (0..6u64)
            .map(|own| {
                Box::pin(async move {
                    let ranges: Vec<_> =
                        (0..4).map(|i| (own * 30 + i * 7) * 4096).map(|at| at..at + 8).collect();
                    let held = map.get_many_async(&ranges).await.unwrap();
                    for (range, held) in ranges.iter().zip(&held) {
                        assert!(held[..] == bytes[range.start as usize..range.end as usize]);
                    }
                }) as Pin<Box<dyn Future<Output = ()>>>
            })
            .collect(),
    );
}

#[test]
fn dropped_futures_errors_and_deadlines() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let bytes = contents(100 * PAGE);
        let store = FaultyStore::new(bytes.clone(), false);
        let pager = pager(4 << 20);
        let options = paged(&pager, mode).deadline(Duration::from_millis(300));
        let map = options.open_store(Arc::clone(&store) as Arc<dyn Store>).unwrap();
        store.on_read(Mishap::Errno(libc::EIO));
        let error = block_on(map.get_async(8192..8200)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EIO), "{error}");
        assert!(block_on(map.get_many_async(&[0..1, 50_000..50_001])).is_err());
        assert!(block_on(map.prefetch_async(..)).is_err());
        store.on_read(Mishap::Hang);
        let mut context = Context::from_waker(Waker::noop());
        for at in (0..100u64).step_by(3) {
            let mut future = Box::pin(map.get_async(at * 4096..at * 4096 + 1));
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        let error = block_on(map.get_async(0..1)).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        store.heal();
        assert!(block_on(map.get_async(..)).unwrap()[..] == bytes[..]);
        assert_eq!(map.evict(..).unwrap(), 100 * (PAGE as u64 + 16), "no pin is left behind");
    }
}
