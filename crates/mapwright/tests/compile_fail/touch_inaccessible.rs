//! What is inaccessible has no bytes.
fn main() {
    let memory = mapwright::mmap::MmapOptions::new().len(4096).map_none().unwrap();
    println!("{}", memory[0]);
}
