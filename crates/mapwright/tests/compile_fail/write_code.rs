//! What can be run can't be written.
fn main() {
    let mut code = mapwright::mmap::MmapMut::map_anon(4096).unwrap().make_exec().unwrap();
    code[0] = 0xc3;
}
