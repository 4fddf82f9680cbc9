//! So does it for a file through the strategies.
fn main() {
    let mut map = mapwright::MapMut::open("file").unwrap();
    let view = &map[..];
    map.resize(8192).unwrap();
    println!("{}", view[0]);
}
