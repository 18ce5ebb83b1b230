//! File actions on trees (copy, mkdir, mkfile, rm, symlink, merge, diff), and digests of their content.
