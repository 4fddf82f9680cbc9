//! No change of protection makes a slice of what others may change.
fn main() {
    let file = mapwright::mmap::MmapOptions::new().open("file").unwrap();
    let _ = file.make_exec();
}
