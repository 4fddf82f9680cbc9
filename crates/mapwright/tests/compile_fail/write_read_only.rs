//! What is read-only is not written.
fn main() {
    let mut memory = mapwright::mmap::MmapMut::map_anon(4096).unwrap().make_read_only().unwrap();
    memory[0] = 1;
}
