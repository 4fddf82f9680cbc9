//! The slice of a checked scope stays inside.
fn main() {
    let map = mapwright::Map::open("file").unwrap();
    let mut kept: &[u8] = &[];
    map.checked(|bytes| kept = bytes).unwrap();
    println!("{}", kept[0]);
}
