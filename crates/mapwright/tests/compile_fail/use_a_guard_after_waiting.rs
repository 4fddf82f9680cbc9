//! Waiting takes the guard, and gives back another.
use mapwright::sync::{Condition, Mutex};

fn wait(mutex: &Mutex<u32>, condition: &Condition) {
    let guard = mutex.lock().unwrap().repair(|_| ()).unwrap();
    let _locked = condition.wait(guard).unwrap();
    println!("{}", guard.get().unwrap());
}

fn main() {
    let _ = wait;
}
