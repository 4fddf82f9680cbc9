//! A vector does not grow under a slice of it.
fn main() {
    let mut vector = mapwright::MapVec::<u64>::create("numbers").unwrap();
    let first = &vector[0];
    vector.push(1).unwrap();
    println!("{first}");
}
