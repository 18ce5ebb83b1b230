//! What a build leaves behind: images in the store, archives, directories.
