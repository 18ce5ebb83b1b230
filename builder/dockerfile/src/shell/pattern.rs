//! Patterns in `${v#p}`, `${v%p}` and `${v/p/r}`.
