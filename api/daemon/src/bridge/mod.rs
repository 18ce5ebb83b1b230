//! What the doors need done and nobody below does in their words: images in and out, and a sweep after each build.

mod changes;
mod credentials;
mod download;
mod images;
mod swept;

pub(crate) use images::StoreTransfer;
pub(crate) use swept::Swept;
