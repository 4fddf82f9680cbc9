//! Kinds are not made outside.
use mapwright::mmap::Kind;

enum Mine {}

impl Kind for Mine {
    const PROTECTION: u32 = 7;
    const NAME: &'static str = "mine";
    type ReadOnly = mapwright::mmap::Read;
    type Writable = mapwright::mmap::Write;
}

fn main() {}
