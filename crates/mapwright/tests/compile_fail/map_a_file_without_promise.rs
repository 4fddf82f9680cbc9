//! A slice of a file is made by an unsafe function.
use mapwright::mmap::{MapAssumed, Mmap};

fn main() {
    let file = std::fs::File::open("file").unwrap();
    let map = Mmap::map(&file).unwrap();
    println!("{}", map[0]);
}
