//! What lies in a file can't point into memory.
fn main() {
    let mut vector = mapwright::MapVec::<&'static str>::create("strings").unwrap();
    vector.push("hello").unwrap();
}
