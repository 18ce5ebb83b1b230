//! Where a build's input comes from: images, client directories, git, http, uploads.
