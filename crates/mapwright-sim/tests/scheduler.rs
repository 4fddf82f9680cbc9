//! The scheduler finds what it is there to find, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mapwright::engine::kernel::Kernel;
use mapwright_sim::{Failure, Options, SimHandle, Simulation};

/// Three threads that draw, sleep, wake and wait.
fn busy(sim: &SimHandle) {
    let word = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let (word, sim) = (Arc::clone(&word), sim.clone());
            sim.clone().spawn("busy", move || {
                let (kernel, mut rng) = (sim.kernel(), sim.rng(number));
                for _ in 0..20 {
                    match rng.below(3) {
                        0 => kernel.wake(&word),
                        1 => kernel.wait(&word, 0, Some(Duration::from_micros(rng.below(50)))),
                        _ => sim.sleep(Duration::from_micros(rng.below(50))),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join());
}

fn fails(seed: u64, options: &Options, body: impl FnOnce(&SimHandle) + Send + 'static) -> Failure {
    Simulation::try_run(seed, options, body).expect_err("this run has to fail")
}

#[test]
fn a_seed_gives_the_same_run_and_another_seed_another() {
    let hash = |seed| Simulation::run(seed, &Options::default(), busy).trace_hash;
    let first: Vec<u64> = (0..30).map(hash).collect();
    let again: Vec<u64> = (0..30).map(hash).collect();
    assert_eq!(first, again);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 30);
}

#[test]
fn a_deadlock_is_reported_with_who_waits_for_what() {
    let failure = fails(3, &Options { spurious_per_1000: 0, ..Options::default() }, |sim| {
        let other = sim.clone();
        let waiter = sim.spawn("waiter", move || {
            let word = AtomicU32::new(7);
            other.kernel().wait(&word, 7, None);
        });
        waiter.join();
    });
    assert!(failure.why.contains("deadlock"), "{failure}");
    assert!(failure.message.contains("seed 3"), "{failure}");
    assert!(failure.message.contains("0:body: joins 1:waiter"), "{failure}");
    assert!(failure.message.contains("1:waiter: waits on word #0"), "{failure}");
}

#[test]
fn a_panic_in_any_thread_ends_the_run() {
    let failure = fails(5, &Options::default(), |sim| {
        let thread = sim.spawn("faulty", || panic!("expected {}", 41 + 1));
        thread.join()
    });
    assert!(failure.why.contains("expected 42"), "{failure}");
    assert!(failure.why.contains("tests/scheduler.rs"), "{failure}");
}

#[test]
fn a_livelock_is_reported() {
    let options = Options { max_steps: 5000, ..Options::default() };
    let failure = fails(1, &options, |sim| {
        loop {
            sim.yield_now();
        }
    });
    assert!(failure.why.contains("livelock"), "{failure}");
}

#[test]
fn a_thread_that_blocks_outside_of_the_simulation_is_reported() {
    let options = Options { stuck_after: Duration::from_secs(1), ..Options::default() };
    let failure = fails(1, &options, |_| {
        loop {
            std::thread::park();
        }
    });
    assert!(failure.why.contains("no yield point"), "{failure}");
    assert!(failure.message.contains("0:body: runs"), "{failure}");
}

#[test]
fn daemons_left_over_are_a_leak_with_and_without_timers() {
    for timeout in [None, Some(Duration::from_secs(1))] {
        let failure = fails(1, &Options::default(), move |sim| {
            let kernel = sim.kernel();
            let work = move || {
                let word = AtomicU32::new(0);
                loop {
                    kernel.wait(&word, 0, timeout);
                }
            };
            sim.kernel().spawn("server", Box::new(work)).unwrap();
        });
        assert!(failure.why.contains("leak"), "{failure}");
        assert!(failure.message.contains("server (daemon)"), "{failure}");
    }
}

#[test]
fn daemons_that_end_after_the_body_are_none() {
    for seed in 0..20 {
        let ended = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&ended);
        let report = Simulation::run(seed, &Options::default(), move |sim| {
            let kernel = sim.kernel();
            let work = move || {
                let mut faults = Vec::new();
                kernel.wait_faults(&mut faults).unwrap();
                assert!(faults.is_empty());
                kernel.wait(&AtomicU32::new(0), 0, Some(Duration::from_millis(10)));
                tell.store(true, Ordering::SeqCst);
            };
            sim.kernel().spawn("server", Box::new(work)).unwrap();
            sim.kernel().interrupt_faults();
        });
        assert!(ended.load(Ordering::SeqCst));
        assert_eq!(report.threads, 2);
    }
}

#[test]
fn time_jumps_over_sleeps_and_never_back() {
    let report = Simulation::run(1, &Options::default(), |sim| {
        let before = sim.now();
        sim.sleep(Duration::from_secs(3600));
        let after = sim.now();
        assert!(after - before >= Duration::from_secs(3600));
        // Until the time-out, or early for no reason, but never for ever.
        sim.kernel().wait(&AtomicU32::new(1), 1, Some(Duration::from_secs(1)));
        sim.kernel().wait(&AtomicU32::new(1), 2, None);
        assert!(sim.now() >= after);
    });
    assert!(report.time < Duration::from_secs(3700));
}

/// One thread waits for a flag, the other sets it. The bug: the waiter looks at the flag, and then waits on a word that does
/// not change with the flag.
fn hand_over(sim: &SimHandle, buggy: bool) {
    let flag = Arc::new(AtomicU32::new(0));
    let bell = Arc::new(AtomicU32::new(0));
    let setter = sim.spawn("setter", {
        let (flag, bell, kernel) = (Arc::clone(&flag), Arc::clone(&bell), sim.kernel());
        move || {
            flag.store(1, Ordering::SeqCst);
            if !buggy {
                bell.fetch_add(1, Ordering::SeqCst);
            }
            kernel.wake(&bell);
        }
    });
    loop {
        let seen = bell.load(Ordering::SeqCst);
        if flag.load(Ordering::SeqCst) == 1 {
            break;
        }
        sim.kernel().wait(&bell, seen, None);
    }
    setter.join();
}

#[test]
fn a_lost_wake_up_is_found_and_its_mended_twin_is_not() {
    let options = Options::default();
    let found =
        (0..200).find_map(|seed| Simulation::try_run(seed, &options, |sim| hand_over(sim, true)).err());
    let failure = found.expect("200 seeds find a lost wake-up");
    assert!(failure.why.contains("deadlock"), "{failure}");
    // And by this seed again.
    let again = fails(failure.seed, &options, |sim| hand_over(sim, true));
    assert_eq!(again.why, failure.why);
    println!("lost wake-up found by seed {}", failure.seed);
    for seed in 0..500 {
        Simulation::run(seed, &options, |sim| hand_over(sim, false));
    }
}
