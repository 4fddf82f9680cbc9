//! A place says what lies there.
use mapwright::sync::{Mutex, Plan, Segment};

fn get(segment: &Segment, plan: &mut Plan) -> Mutex<u64> {
    let place = plan.mutex::<u32>();
    segment.get(place).unwrap()
}

fn main() {
    let _ = get;
}
