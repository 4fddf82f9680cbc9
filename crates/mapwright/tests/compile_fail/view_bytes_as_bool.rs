//! Not every byte is a `bool`.
use mapwright::Views;

fn main() {
    let memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    println!("{}", memory.view::<bool>(0).unwrap());
}
