//! Power failures: the protocol of commits loses nothing. `MAPWRIGHT_CRASH_STATES` in the environment says in how many states of the disk
//! at least; `MAPWRIGHT_SIM_SEED` runs one seed.

use mapwright_sim::power::{self, Tally};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

#[test]
fn no_power_failure_loses_a_commit() {
    if let Some(seed) = number("MAPWRIGHT_SIM_SEED") {
        println!("{:?}", power::run(seed).unwrap());
        return;
    }
    let wanted = number("MAPWRIGHT_CRASH_STATES").unwrap_or(120_000);
    let mut tally = Tally::default();
    for seed in 0.. {
        tally.add(&power::run(seed).unwrap_or_else(|why| panic!("{why}")));
        if tally.states >= wanted {
            println!("{tally:?} in {} seeds", seed + 1);
            break;
        }
    }
    assert!(tally.commits > 0 && tally.checkpoints > 0 && tally.failures > 0, "{tally:?}");
    assert!(tally.kills > 0 && tally.resumed > 0 && tally.empty > 0, "{tally:?}");
    assert!(tally.full > 0 && tally.beside > 0 && tally.unreadable > 0, "{tally:?}");
    assert!(tally.refused > 0 && tally.read > 0, "{tally:?}");
}

#[test]
fn a_run_follows_from_its_seed() {
    assert_eq!(power::run(3), power::run(3));
}
