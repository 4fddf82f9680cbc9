//! The `mapwright` command.
fn main() {}
