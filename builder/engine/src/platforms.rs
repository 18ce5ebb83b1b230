//! Platforms whose processes run here.

use lapstrake_builder_executor::Architectures;
use lapstrake_layerstore_oci::Platform;

/// The platforms whose processes run here, this machine's own first: those of its processor, and those that an emulator is registered for.
/// In BuildKit's order and form (`util/archutil`), as workers report them.
pub async fn platforms(architectures: &Architectures) -> Vec<Platform> {
    let mut platforms = vec![Platform::host()];
    platforms.extend(levels().into_iter().map(|level| Platform::new("linux", "amd64").with_variant(level)));
    for architecture in architectures.all().await {
        let platform = Platform::new("linux", architecture);
        // What runs one version of 32-bit ARM runs the one before, too.
        let older = (architecture == "arm").then(|| platform.clone().with_variant("v6"));
        for platform in std::iter::once(platform.normalized()).chain(older) {
            if !platforms.contains(&platform) {
                platforms.push(platform);
            }
        }
    }
    platforms
}

/// The levels of x86-64 above the first that the processor has (System V ABI, AMD64 supplement, "Micro-Architecture Levels").
#[cfg(target_arch = "x86_64")]
fn levels() -> Vec<&'static str> {
    macro_rules! has {
        ($($feature:tt),+) => { $(std::arch::is_x86_feature_detected!($feature))&&+ };
    }
    let levels = [
        ("v2", has!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3")),
        ("v3", has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe")),
        ("v4", has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ];
    // Each contains the ones before.
    levels.into_iter().take_while(|(_, has)| *has).map(|(level, _)| level).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn levels() -> Vec<&'static str> {
    Vec::new()
}
