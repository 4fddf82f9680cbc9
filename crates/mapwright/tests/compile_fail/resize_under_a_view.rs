//! A live view blocks a resize.
use mapwright::mmap::{MmapMut, Resize};

fn main() {
    let mut memory = MmapMut::map_anon(4096).unwrap();
    let view = &memory[..];
    memory.resize(8192, Resize::MayMove).unwrap();
    println!("{}", view[0]);
}
