//! Runs one BuildRequest from plan to export.
