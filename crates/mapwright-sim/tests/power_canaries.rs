//! Tests of the tests: with any ordering step of the protocol left out, the power-failure simulator finds a loss.

use mapwright::journal::sabotage::{ALL, choose};
use mapwright_sim::power;

/// Seeds within which every sabotage is to be found.
const SEEDS: u64 = 2000;

/// One test: what is sabotaged is chosen for the whole process.
#[test]
fn every_step_that_is_left_out_is_found() {
    let mut missed = Vec::new();
    // Panics are expected here, and caught; their messages would only hide the table.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for sabotage in ALL {
        choose(Some(sabotage));
        match (0..SEEDS).find_map(|seed| power::run(seed).err()) {
            Some(why) => println!("{sabotage:?}: {why}"),
            None => missed.push(sabotage),
        }
    }
    choose(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "{SEEDS} seeds do not find {missed:?}");
}
