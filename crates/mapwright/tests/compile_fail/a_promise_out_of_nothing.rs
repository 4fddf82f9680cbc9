//! A promise is given by an unsafe function only.
fn main() {
    let _ = mapwright::mmap::Promise(());
}
