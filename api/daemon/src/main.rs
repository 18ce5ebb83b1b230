//! The lapstrake program.

fn main() {}
