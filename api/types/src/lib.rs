//! Engine API JSON, query parameters and API-version gates; serde only, no I/O.
