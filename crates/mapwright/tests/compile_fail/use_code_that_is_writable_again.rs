//! Code that was made writable again is no code any more.
fn main() {
    let code = mapwright::mmap::MmapMut::map_anon(4096).unwrap().make_exec().unwrap();
    let mut memory = code.make_mut().unwrap();
    memory[0] = 0xc3;
    println!("{:?}", code.entry(0));
}
