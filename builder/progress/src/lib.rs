//! What a build says while it runs: typed events, a bounded channel, renderings.
