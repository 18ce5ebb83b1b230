//! Frontends that call back: clients that are one, images that are one, and what neither may do.

mod containers;
mod failed;
mod files;
mod images;
mod provenance;
mod solving;
mod support;
