//! Nor is the protection changed under one.
fn main() {
    let mut memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap();
    let view = &mut memory[..];
    let memory = memory.make_read_only().unwrap();
    view[0] = memory[0];
}
