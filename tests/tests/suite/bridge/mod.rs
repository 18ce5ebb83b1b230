//! Frontends that call back: clients that are one, images that are one, and what neither may do.

mod containers;
mod files;
mod images;
mod solving;
mod support;
