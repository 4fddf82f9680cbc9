//! What was split is its parts.
fn main() {
    let memory = mapwright::mmap::MmapMut::map_anon(8192).unwrap();
    let (front, back) = memory.split_at(4096).unwrap();
    println!("{} {} {}", front.len(), back.len(), memory[0]);
}
