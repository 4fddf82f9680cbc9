//! Contents are not thrown away under a view.
fn main() {
    let mut memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let view = &memory[..];
    memory.discard(..).unwrap();
    println!("{}", view[0]);
}
