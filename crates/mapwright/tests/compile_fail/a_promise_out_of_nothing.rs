//! A promise is given by an unsafe function only.
use std::os::fd::AsFd;

fn main() {
    let file = std::fs::File::open("file").unwrap();
    let _ = mapwright::mmap::Promise { file: file.as_fd() };
}
