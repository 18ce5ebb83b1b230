//! What a build learns about its steps while it runs; written down when it ends.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Metadata;
use parking_lot::Mutex;

use crate::{Listing, MissReason, Place, Project, Recipe, compare, rows};

/// Most steps of one build that are noted.
const STEPS: usize = 10_000;
/// Bytes that the listings of one build's recipes may take, packed; what comes after is not noted.
const LISTING_BYTES: usize = 16 << 20;

/// What the last run in a place says of a run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explained {
    /// Nothing ran there before.
    Never,
    /// Everything is as it was.
    Same,
    /// This is different.
    Different(Vec<MissReason>),
}

/// Takes notes for one build.
pub struct BuildNotes {
    metadata: Metadata,
    project: OnceLock<Project>,
    /// What the project's steps were made of before this build; read when the first is asked for.
    former: OnceLock<Former>,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    reasons: HashMap<Digest, Vec<MissReason>>,
    recipes: Vec<Arc<PackedRecipe>>,
    listing_bytes: usize,
}

/// A recipe on its way to the database.
#[derive(Debug)]
pub struct PackedRecipe {
    pub(crate) place: Place,
    pub(crate) recipe: Recipe,
    /// Packed listings by number of the input.
    pub(crate) listings: Vec<(usize, Vec<u8>)>,
}

impl PackedRecipe {
    /// What a step in a place is made of. Takes a while where there are many files.
    pub fn new(place: Place, recipe: Recipe) -> Arc<Self> {
        let pack = |(number, listing): (usize, &Listing)| Some((number, listing.to_bytes().ok()?));
        let listings = recipe.listings().filter_map(pack).collect();
        Arc::new(Self { place, recipe: recipe.bounded(), listings })
    }

    fn bytes(&self) -> usize {
        self.listings.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

/// A recipe of a former build.
#[derive(Debug)]
pub(crate) struct FormerRecipe {
    pub(crate) seq: i64,
    pub(crate) project: Project,
    pub(crate) place: Place,
    pub(crate) document: String,
}

/// Recipes of former builds, newest first.
pub(crate) type Former = Vec<FormerRecipe>;

impl BuildNotes {
    pub(crate) fn new(metadata: Metadata) -> Arc<Self> {
        Arc::new(Self {
            metadata,
            project: OnceLock::new(),
            former: OnceLock::new(),
            noted: Mutex::default(),
        })
    }

    /// Says which project it is; counts once.
    pub fn set_project(&self, project: Project) {
        let _ = self.project.set(project);
    }

    /// Compares a step with its last run in the same place. Blocks.
    pub fn explain(&self, place: &Place, recipe: &Recipe) -> Explained {
        let Some(former) = find(self.former(), self.project(), place) else { return Explained::Never };
        let Ok(mut old) = serde_json::from_str::<Recipe>(&former.document) else { return Explained::Never };
        if recipe.listings().next().is_some() {
            match rows::listings(&self.metadata, former.seq) {
                Ok(listings) => {
                    for (number, listing) in listings {
                        old.put_listing(number, listing);
                    }
                }
                Err(error) => tracing::warn!(%error, "files of a step's last run cannot be read"),
            }
        }
        let reasons = compare(&old, recipe, former.place.instruction == place.instruction);
        if reasons.is_empty() { Explained::Same } else { Explained::Different(reasons) }
    }

    /// Notes why a vertex was run.
    pub fn note_reasons(&self, vertex: &Digest, reasons: Vec<MissReason>) {
        let mut noted = self.noted.lock();
        if noted.reasons.len() < STEPS {
            noted.reasons.insert(vertex.clone(), reasons);
        }
    }

    /// Notes what a step that ran well was made of.
    pub fn note_recipe(&self, recipe: &Arc<PackedRecipe>) {
        let mut noted = self.noted.lock();
        if noted.recipes.len() < STEPS && noted.listing_bytes + recipe.bytes() <= LISTING_BYTES {
            noted.listing_bytes += recipe.bytes();
            noted.recipes.push(Arc::clone(recipe));
        }
    }

    /// Why a vertex was run.
    pub(crate) fn reasons(&self, vertex: &Digest) -> Vec<MissReason> {
        self.noted.lock().reasons.get(vertex).cloned().unwrap_or_default()
    }

    pub(crate) fn take_recipes(&self) -> Vec<Arc<PackedRecipe>> {
        std::mem::take(&mut self.noted.lock().recipes)
    }

    /// Which project it is; nothing of it is known until [`Self::set_project`].
    pub fn project(&self) -> &Project {
        static NONE: Project = Project { image: None, context: None, dockerfile: None };
        self.project.get().unwrap_or(&NONE)
    }

    fn former(&self) -> &Former {
        self.former.get_or_init(|| {
            rows::former(&self.metadata, self.project()).unwrap_or_else(|error| {
                tracing::warn!(%error, "what steps were made of before cannot be read");
                Former::new()
            })
        })
    }
}

impl std::fmt::Debug for BuildNotes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildNotes").field("project", self.project()).finish_non_exhaustive()
    }
}

/// The last run in a place: the same instruction in the same stage, else whatever stood at the same number. What is known by name goes
/// before what is known by its context, and that before what has the same Dockerfile; then the number, then the newest.
fn find<'a>(former: &'a Former, project: &Project, place: &Place) -> Option<&'a FormerRecipe> {
    let strength = |of: &Project| {
        let alike = |one: Option<crate::Mark>, other: Option<crate::Mark>| one.is_some() && one == other;
        if alike(of.image, project.image) {
            2
        } else if alike(of.context, project.context) {
            1
        } else {
            0
        }
    };
    let in_stage = || former.iter().filter(|old| old.place.stage == place.stage);
    // The first of the best: `max_by_key` would take the last.
    let same = in_stage()
        .filter(|old| old.place.instruction == place.instruction)
        .rev()
        .max_by_key(|old| (strength(&old.project), old.place.position == place.position));
    same.or_else(|| {
        in_stage()
            .filter(|old| {
                place.position > 0 && old.place.position == place.position && strength(&old.project) > 0
            })
            .rev()
            .max_by_key(|old| strength(&old.project))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;

    fn former(seq: i64, project: &Project, name: &str) -> FormerRecipe {
        FormerRecipe { seq, project: project.clone(), place: Place::of(name), document: String::new() }
    }

    fn project(image: Option<&str>, context: Option<&str>, dockerfile: &str) -> Project {
        Project {
            image: image.map(Mark::of),
            context: context.map(Mark::of),
            dockerfile: Some(Mark::of(dockerfile)),
        }
    }

    #[test]
    fn a_step_is_found_again() {
        let app = project(Some("app"), Some("/src/app"), "1");
        let elsewhere = project(None, Some("/src/app"), "1");
        let stranger = project(None, None, "1");
        // Newest first.
        let rows = vec![
            former(9, &stranger, "[3/3] RUN make"),
            former(8, &elsewhere, "[2/3] RUN make"),
            former(7, &app, "[2/3] RUN make"),
            former(6, &app, "[3/3] RUN true"),
            former(5, &app, "[build 2/3] RUN make"),
            former(4, &app, "[2/3] RUN make"),
        ];
        let found = |project: &Project, name: &str| find(&rows, project, &Place::of(name)).map(|row| row.seq);
        assert_eq!(found(&app, "[2/3] RUN make"), Some(7), "by name, the newest");
        assert_eq!(found(&app, "[3/4] RUN make"), Some(7), "also where it moved");
        assert_eq!(found(&elsewhere, "[2/3] RUN make"), Some(8), "by context");
        assert_eq!(found(&app, "[3/3] RUN false"), Some(6), "what stood there");
        assert_eq!(found(&app, "[build 3/3] RUN false"), None);
        assert_eq!(found(&stranger, "[3/3] RUN make"), Some(9), "the same Dockerfile, the same instruction");
        assert_eq!(found(&stranger, "[3/3] RUN false"), None, "the same Dockerfile has no other instruction");
    }
}
