//! The `diad` command.

fn main() {}
