//! A slice does not outlive its mapping.
fn main() {
    let memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let slice = &memory[..];
    drop(memory);
    println!("{}", slice[0]);
}
