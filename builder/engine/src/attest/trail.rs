//! What a frontend was asked, and what it used for its answer: each frontend of a build has a trail of its own, below that of who asked it.
//!
//! ```text
//!   client's request ─► Trail ── asks ─► Trail of dockerfile.v0 ── images it asked about, results that were solved
//!                                    └─► Trail of another one …
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lapstrake_builder_dockerfile::{ImageFact, ImageOrigin, ImageQuery};
use lapstrake_builder_exporter::Compatibility;
use lapstrake_builder_llb::Definition;
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::SnapshotKey;
use parking_lot::Mutex;

use super::{
    Producers,
    capture::{Capture, ImageUsed},
    predicate::Request,
};
use crate::{FrontendRequest, Input, recorded};

/// Most images and results that one frontend's trail tells of; who has more has a provenance that says that it is not complete.
const MOST: usize = 100_000;

/// A question to a frontend.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) request: FrontendRequest,
    /// Of graphs that came with it, by name, what somebody asked who had them made, where that is known.
    pub(crate) inputs: BTreeMap<String, Request>,
}

impl Asked {
    pub(crate) fn new(request: FrontendRequest, producers: &Producers) -> Self {
        let made = |(name, graph): (&String, &Definition)| Some((name.clone(), producers.request(graph)?));
        let inputs = request.inputs.iter().filter_map(made).collect();
        Self { request, inputs }
    }
}

/// What a frontend was asked, and what it used.
pub(crate) struct Trail {
    /// What it was asked; nothing, of the client itself.
    asked: Option<Asked>,
    /// What the client asked of the whole build.
    root: Option<Arc<Asked>>,
    compatibility: Compatibility,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    images: Vec<ImageUsed>,
    /// By the names of results.
    results: BTreeMap<String, Capture>,
    asked: Vec<Arc<Trail>>,
    is_incomplete: bool,
}

impl Trail {
    /// That of a build which is not told of to anybody.
    pub(crate) fn nowhere() -> Arc<Self> {
        let compatibility = Compatibility::default();
        Arc::new(Self { asked: None, root: None, compatibility, used: Mutex::default() })
    }

    /// That of a build.
    pub(crate) fn of(input: &Input, compatibility: Compatibility, producers: &Producers) -> Arc<Self> {
        let root = asked(input);
        let has_root = !root.frontend.is_empty() || !root.options.is_empty() || !root.inputs.is_empty();
        let root = Asked::new(root, producers);
        let asked = matches!(input, Input::Dockerfile { .. }).then(|| root.clone());
        let root = has_root.then(|| Arc::new(root));
        Arc::new(Self { asked, root, compatibility, used: Mutex::default() })
    }

    /// That of a further frontend.
    pub(crate) fn ask(&self, asked: Asked) -> Arc<Self> {
        let root = self.root.clone().or_else(|| self.asked.clone().map(Arc::new));
        let (asked, compatibility) = (Some(asked), self.compatibility);
        let trail = Arc::new(Self { asked, root, compatibility, used: Mutex::default() });
        let mut used = self.used.lock();
        match used.asked.len() < MOST {
            true => used.asked.push(Arc::clone(&trail)),
            false => used.is_incomplete = true,
        }
        trail
    }

    /// What it was asked.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    /// As which version of BuildKit the results are made.
    pub(crate) fn compatibility(&self) -> Compatibility {
        self.compatibility
    }

    /// What the client asked of the whole build.
    pub(crate) fn root(&self) -> Option<&Asked> {
        self.root.as_deref()
    }

    /// What all of its own results that are made were made of.
    pub(crate) fn own(&self) -> Capture {
        let mut all = Capture::default();
        self.used.lock().results.values().for_each(|capture| all.merge(capture));
        all
    }

    /// It was told what an image is.
    pub(crate) fn note_query(&self, query: &ImageQuery, fact: &ImageFact) {
        let id = || fact.image_id.as_ref().map(|id| id.digest().clone());
        self.note_image(ImageUsed {
            reference: query.reference.to_string(),
            platform: Some(query.platform.clone()),
            digest: fact.digest.clone().or_else(id),
            is_local: matches!(query.origin, ImageOrigin::OciLayout { .. }),
        });
    }

    fn note_image(&self, image: ImageUsed) {
        let mut used = self.used.lock();
        match used.images.len() < MOST {
            true => used.images.push(image),
            false => used.is_incomplete = true,
        }
    }

    /// A result was made, under a name if it has one.
    pub(crate) fn note_result(&self, name: Option<&str>, capture: Capture) {
        let name = name.map_or_else(|| SnapshotKey::random().to_string(), str::to_owned);
        let mut used = self.used.lock();
        match used.results.len() < MOST {
            true => _ = used.results.insert(name, capture),
            false => used.is_incomplete = true,
        }
    }

    /// Who made a result.
    pub(crate) fn maker(self: &Arc<Self>, result: &str) -> Option<Arc<Self>> {
        let (asked, is_own) = {
            let used = self.used.lock();
            (used.asked.clone(), used.results.contains_key(result))
        };
        let further = asked.iter().find_map(|trail| trail.maker(result));
        further.or_else(|| is_own.then(|| Arc::clone(self)))
    }

    /// What a result of this frontend was made of. All else that was solved for it counts too, but what is another one of the final `results`.
    /// `platforms` are those of the final results, `platform` that of this one, if there are several.
    pub(crate) fn capture(
        &self,
        result: &str,
        results: &BTreeSet<String>,
        platforms: &[Platform],
        platform: Option<&Platform>,
    ) -> Option<Capture> {
        let mut capture = self.used.lock().results.get(result)?.clone();
        self.each_result(&mut |name, other| {
            if name != result && !results.contains(name) {
                capture.merge(other);
            }
        });
        let mut images = Vec::new();
        self.all_images(&mut images, &mut capture.is_incomplete);
        if let Some(platform) = platform {
            images = of_platform(images, platforms, platform);
        }
        images.into_iter().for_each(|image| capture.add_image(image));
        capture.finish();
        Some(capture)
    }

    fn each_result(&self, visit: &mut impl FnMut(&str, &Capture)) {
        let used = self.used.lock();
        used.results.iter().for_each(|(name, capture)| visit(name, capture));
        let asked = used.asked.clone();
        drop(used);
        asked.iter().for_each(|trail| trail.each_result(visit));
    }

    fn all_images(&self, images: &mut Vec<ImageUsed>, is_incomplete: &mut bool) {
        let used = self.used.lock();
        images.extend(used.images.iter().cloned());
        *is_incomplete |= used.is_incomplete;
        let asked = used.asked.clone();
        drop(used);
        asked.iter().for_each(|trail| trail.all_images(images, is_incomplete));
    }
}

/// What a client asks, as a question to a frontend.
fn asked(input: &Input) -> FrontendRequest {
    match input {
        Input::Definition { options, .. } => {
            FrontendRequest { options: options.clone(), ..FrontendRequest::default() }
        }
        Input::Frontend(request) => request.clone(),
        Input::Client { options, inputs } => {
            FrontendRequest { frontend: String::new(), options: options.clone(), inputs: inputs.clone() }
        }
        Input::Dockerfile { .. } => FrontendRequest {
            frontend: "dockerfile.v0".to_owned(),
            options: recorded::said(input),
            inputs: BTreeMap::new(),
        },
    }
}

/// Images that are there for each of the platforms are those of one of them; others count for all.
fn of_platform(images: Vec<ImageUsed>, platforms: &[Platform], platform: &Platform) -> Vec<ImageUsed> {
    let is_for = |image: &ImageUsed, wanted: &Platform| {
        image.platform.as_ref().is_some_and(|own| own.normalized() == wanted.normalized())
    };
    let of_all: BTreeSet<String> = images
        .iter()
        .filter(|image| {
            platforms.iter().all(|wanted| {
                images.iter().any(|other| other.reference == image.reference && is_for(other, wanted))
            })
        })
        .map(|image| image.reference.clone())
        .collect();
    let is_other = |image: &ImageUsed| {
        let own = image.platform.as_ref();
        of_all.contains(&image.reference)
            && own.is_some_and(|own| own.os != platform.os || own.architecture != platform.architecture)
    };
    images.into_iter().filter(|image| !is_other(image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(architecture: &str) -> Platform {
        Platform::new("linux", architecture)
    }

    fn capture(local: &str) -> Capture {
        Capture { locals: vec![local.to_owned()], ..Capture::default() }
    }

    fn request(frontend: &str) -> Asked {
        let request = FrontendRequest { frontend: frontend.to_owned(), ..FrontendRequest::default() };
        Asked { request, inputs: BTreeMap::new() }
    }

    #[test]
    fn a_result_is_its_makers_with_all_that_the_maker_had_solved() {
        let client = Trail::nowhere();
        let (one, other) = (client.ask(request("one")), client.ask(request("other")));
        let inner = one.ask(request("inner"));
        one.note_result(Some("result"), capture("context"));
        one.note_result(Some("of another platform"), capture("elsewhere"));
        one.note_result(None, capture("dockerfile"));
        inner.note_result(Some("inner"), capture("inner"));
        other.note_result(Some("unrelated"), capture("unrelated"));
        assert_eq!(client.maker("inner").unwrap().asked().unwrap().request.frontend, "inner");
        assert!(client.maker("nothing").is_none());
        let maker = client.maker("result").unwrap();
        assert_eq!(maker.asked().unwrap().request.frontend, "one");
        let results = ["result", "of another platform"].map(str::to_owned).into();
        let found = maker.capture("result", &results, &[], None).unwrap();
        assert_eq!(found.locals, ["context", "dockerfile", "inner"]);
    }

    #[test]
    fn of_an_image_for_all_platforms_each_result_has_its_own() {
        let trail = Trail::nowhere();
        let image = |name: &str, architecture: &str| {
            let reference = format!("docker.io/library/{name}:latest");
            let platform = Some(platform(architecture));
            trail.note_image(ImageUsed { reference, platform, digest: None, is_local: false });
        };
        image("base", "amd64");
        image("base", "arm64");
        image("tools", "amd64");
        trail.note_result(Some("result"), Capture::default());
        let platforms = [platform("amd64"), platform("arm64")];
        let found = trail.capture("result", &BTreeSet::new(), &platforms, Some(&platform("arm64"))).unwrap();
        let told: Vec<_> = found
            .images
            .iter()
            .map(|image| (image.reference.as_str(), image.platform.as_ref().unwrap().architecture.as_str()))
            .collect();
        assert_eq!(
            told,
            [("docker.io/library/base:latest", "arm64"), ("docker.io/library/tools:latest", "amd64")]
        );
    }
}
