//! What can be written has no entry.
fn main() {
    let memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    println!("{:?}", memory.entry(0));
}
