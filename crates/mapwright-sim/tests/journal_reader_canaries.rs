//! Tests of the tests: a reader or a replay that is broken is found by what the fuzzer tries.

use mapwright::journal::sabotage::{Sabotage, choose};
use mapwright_sim::Rng;
use mapwright_sim::fuzz::{WRITE, mutate, sample, try_journal};

/// One test: what is sabotaged is chosen for the whole process.
#[test]
fn a_broken_reader_is_found() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let samples: Vec<Vec<u8>> = (0..8).map(sample).collect();
    let mut missed = Vec::new();
    for sabotage in [Sabotage::ReplayTail, Sabotage::TrustRecords, Sabotage::NoCut, Sabotage::RetireFirst] {
        choose(Some(sabotage));
        let mut rng = Rng::new(1);
        let found = (0..5000).find(|round| {
            let input = if round % 2 == 0 {
                let mut program = vec![WRITE];
                program.extend((0..rng.below(250)).map(|_| rng.next_u64() as u8));
                program
            } else {
                let mut input = samples[rng.index(samples.len())].clone();
                mutate(&mut input, &samples[0], &mut rng);
                input
            };
            std::panic::catch_unwind(|| try_journal(&input)).is_err()
        });
        println!("{sabotage:?}: input {found:?}");
        missed.extend(found.is_none().then_some(sabotage));
    }
    choose(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}
