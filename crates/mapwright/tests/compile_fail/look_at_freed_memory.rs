//! Freed memory is not looked at before it is taken back.
fn main() {
    let memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let freed = memory.free().unwrap();
    println!("{}", freed[0]);
}
