//! A guard stays in its thread.
use mapwright::sync::{Mutex, MutexGuard};

fn unlock_elsewhere(mutex: &'static Mutex<u32>) {
    let guard: MutexGuard<'static, u32> = mutex.lock().unwrap().repair(|_| ()).unwrap();
    std::thread::spawn(move || drop(guard));
}

fn main() {
    let _ = unlock_elsewhere;
}
