//! A view that writes and one that reads at once.
use mapwright::{Views, ViewsMut};

fn main() {
    let mut memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let seen: &u32 = memory.view(0).unwrap();
    *memory.view_mut::<u32>(0).unwrap() = 1;
    println!("{seen}");
}
