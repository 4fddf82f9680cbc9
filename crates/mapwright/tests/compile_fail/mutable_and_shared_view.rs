//! A view to write excludes every other.
fn main() {
    let mut memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let shared = &memory[..];
    let exclusive = &mut memory[..];
    exclusive[0] = 1;
    println!("{}", shared[0]);
}
