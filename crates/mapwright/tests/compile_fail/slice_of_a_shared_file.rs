//! What others may change is not a slice.
fn main() {
    let file = mapwright::mmap::MmapOptions::new().open("file").unwrap();
    let bytes: &[u8] = &file;
    println!("{}", bytes[0]);
}
