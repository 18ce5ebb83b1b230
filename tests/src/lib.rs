//! Whole-daemon tests in one process, and the architecture test.
