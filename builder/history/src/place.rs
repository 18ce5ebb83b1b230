//! Where a step stands, for finding what ran there the last time.

use crate::Mark;

/// What is built again and again: what tells one project from another. Each field that is known is a way to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Project {
    /// The repository that the image is named for, without tag, with the Dockerfile's name.
    pub image: Option<Mark>,
    /// The client's directory or the URL that is the context, with the Dockerfile's name.
    pub context: Option<Mark>,
    /// The Dockerfile's text. Recipes found by it alone count only for the very same instruction.
    pub dockerfile: Option<Mark>,
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The stage, with platform and frontend's remarks, such as `linux/arm64 build`; empty where there is one only.
    pub stage: String,
    /// Its number in the stage; 0 for what has none.
    pub position: u32,
    /// The instruction as progress shows it.
    pub instruction: Mark,
}

impl Place {
    /// The place of a vertex, by its name: `[build 2/5] RUN make`, or any other name.
    pub fn of(name: &str) -> Self {
        Self::parse(name).unwrap_or(Self { stage: String::new(), position: 0, instruction: Mark::of(name) })
    }

    fn parse(name: &str) -> Option<Self> {
        let (label, instruction) = name.strip_prefix('[')?.split_once("] ")?;
        let (stage, count) = label.rsplit_once(' ').unwrap_or(("", label));
        let (position, total) = count.split_once('/')?;
        total.parse::<u32>().ok()?;
        let position = position.parse().ok()?;
        Some(Self { stage: stage.to_owned(), position, instruction: Mark::of(instruction) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_known_by_stage_number_and_instruction() {
        let place = Place::of("[linux/arm64 build 12/15] RUN make");
        assert_eq!((place.stage.as_str(), place.position), ("linux/arm64 build", 12));
        assert_eq!(place.instruction, Place::of("[2/3] RUN make").instruction);
        assert_eq!(Place::of("[2/3] RUN make").stage, "");
    }

    #[test]
    fn other_names_are_places_of_their_own() {
        for name in
            ["[internal] load build context", "docker-image://alpine", "[a/b] x", "[", "[1/", "[1/2]x", ""]
        {
            let place = Place::of(name);
            assert_eq!((place.position, place.instruction), (0, Mark::of(name)), "{name}");
        }
    }
}
