//! A guard borrows its mutex.
use mapwright::mmap::MemoryFile;
use mapwright::sync::{Plan, Segment};

fn main() {
    let mut plan = Plan::new(1);
    let place = plan.mutex::<u32>();
    let memory = MemoryFile::create("memory", plan.len()).unwrap();
    let locked = {
        let mutex = Segment::attach(&memory, &plan).unwrap().get(place).unwrap();
        mutex.lock().unwrap()
    };
    println!("{locked:?}");
}
