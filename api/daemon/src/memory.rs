//! What the daemon keeps of the machine's memory.
//!
//! glibc makes eight arenas for each processor where threads allocate at once, and gives none of what is freed in them back: after a busy hour an
//! idle daemon would hold several times what it uses.

#![allow(unsafe_code)]

/// Has threads share arenas, one for each processor: those that are started from now on.
pub(crate) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = libc::c_int::try_from(processors).unwrap_or(libc::c_int::MAX);
        // SAFETY: sets a number, under the allocator's own lock.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    }
}

/// Gives the kernel back what is free. Takes milliseconds where much is.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called by any thread at any time; it looks at what is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Bytes of this process's own in memory.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn what_is_free_below_something_in_use_is_given_back() {
        const PIECES: usize = 64 << 10;
        let mut pieces: Vec<Box<[u8]>> = (0..PIECES).map(|_| vec![1; 1 << 10].into_boxed_slice()).collect();
        let _in_use = pieces.pop();
        drop(pieces);
        let before = resident();
        give_back();
        let after = resident();
        assert!(after + (32 << 20) < before, "{before} bytes became {after}");
    }
}
