//! A pointer means nothing to another process.
fn main() {
    let mut plan = mapwright::sync::Plan::new(1);
    plan.mutex::<Box<u32>>();
}
