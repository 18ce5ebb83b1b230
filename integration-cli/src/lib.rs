//! Real clients against the real lapstrake program.
