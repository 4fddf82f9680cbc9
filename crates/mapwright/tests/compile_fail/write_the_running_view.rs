//! Of the two views of code, the one that runs has no way to write, nor to become writable; the one that writes, none to run.
fn main() {
    let (writer, code) = mapwright::mmap::CodeWriter::new(4096).unwrap();
    let _ = code.write_at(0, &[0xc3]);
    let _ = writer.entry(0);
    let _ = std::sync::Arc::into_inner(code).unwrap().make_mut();
}
