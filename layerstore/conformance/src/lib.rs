//! Suites that every implementation of the store contracts must pass.
