//! Any bytes in a journal's place: `mapwright_sim::fuzz` says what must hold.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    mapwright_sim::fuzz::try_journal(input);
});
