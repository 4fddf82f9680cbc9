//! What was closed is not read.
fn main() {
    let memory = mapwright::mmap::MmapOptions::new().len(4096).open("/dev/zero").unwrap();
    memory.close().unwrap();
    memory.read_at(0, &mut [0]).unwrap();
}
