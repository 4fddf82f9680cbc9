//! What was opened for reading has no way to write.
fn main() {
    let file = mapwright::mmap::MmapOptions::new().open("file").unwrap();
    file.write_at(0, b"x").unwrap();
}
