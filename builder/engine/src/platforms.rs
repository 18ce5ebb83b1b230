//! Platforms whose processes run here.

use lapstrake_builder_executor::Architectures;
use lapstrake_layerstore_oci::Platform;

/// The platforms whose processes run here, this machine's own first: those of its processor, and those that an emulator is registered for.
/// In BuildKit's order and form (`util/archutil`), as workers report them.
pub async fn platforms(architectures: &Architectures) -> Vec<Platform> {
    let mut platforms = vec![Platform::host()];
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
