//! The container helper as a program of its own, for tests and for embedders whose `main` cannot call
//! `maybe_run_helper`.

fn main() {
    lapstrake_builder_executor::maybe_run_helper();
    eprintln!("lapstrake-exec-helper is started by lapstrake, not by hand");
    std::process::exit(2);
}
