//! Shared memory is copied: others may change it.
use mapwright::Views;

fn main() {
    let shared = mapwright::mmap::MmapOptions::new().len(4096).map_anon_shared().unwrap();
    println!("{}", shared.view::<u32>(0).unwrap());
}
