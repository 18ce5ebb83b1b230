//! What decides what a step makes, in terms that a person can name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Listing, Mark};

/// Most names of a kind that are kept of one step; what goes beyond is not told apart.
const NAMES: usize = 1000;

/// A variable's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its mark.
    #[serde(rename = "m")]
    pub mark: Mark,
    /// Whether it was given as a build-arg.
    #[serde(rename = "a", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_arg: bool,
}

/// Parts of a step that have no name of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Where the process runs.
    WorkingDirectory,
    /// As whom.
    User,
    /// Its network.
    Network,
    /// The platform.
    Platform,
    /// Further hosts.
    Hosts,
    /// Limits and control group.
    Limits,
    /// Security mode.
    Security,
}

impl Aspect {
    /// What people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkingDirectory => "working directory",
            Self::User => "user",
            Self::Network => "network",
            Self::Platform => "platform",
            Self::Hosts => "extra hosts",
            Self::Limits => "limits",
            Self::Security => "security mode",
        }
    }
}

/// What an input is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum IngredientKind {
    /// An image.
    Image {
        /// Its name, without digest.
        #[serde(rename = "r")]
        reference: String,
        /// Its digest, where known.
        #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// Files from outside: a client's directory, a checkout, a download.
    Files {
        /// What people call it, without credentials.
        #[serde(rename = "o")]
        origin: String,
        /// What of it is taken; stored beside the recipe.
        #[serde(skip)]
        listing: Option<Listing>,
    },
    /// Another step's result.
    Step {
        /// What the step is called now; of no use later.
        #[serde(skip)]
        name: String,
    },
}

/// An input of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredient {
    /// What it is.
    #[serde(flatten)]
    pub kind: IngredientKind,
    /// Marks of the keys that the cache knows it by.
    #[serde(rename = "k")]
    pub keys: Vec<Mark>,
}

/// What decided what a step made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recipe {
    /// The op as the cache knows it, without its inputs.
    #[serde(rename = "op")]
    pub op: Mark,
    /// The process or file actions, as they are run.
    #[serde(rename = "do", default)]
    pub action: Mark,
    /// Settings.
    #[serde(rename = "set", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aspects: BTreeMap<Aspect, Mark>,
    /// Environment, by name.
    #[serde(rename = "env", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Variable>,
    /// All build-args of the build, by name: the Dockerfile may have put them into the instruction.
    #[serde(rename = "args", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_args: BTreeMap<String, Mark>,
    /// Mounts, by target.
    #[serde(rename = "mnt", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, Mark>,
    /// Inputs, in order.
    #[serde(rename = "in", default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Ingredient>,
    /// The Dockerfile's text.
    #[serde(rename = "df", default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<Mark>,
}

impl Recipe {
    /// The same within bounds: names of which there are too many are dropped.
    pub(crate) fn bounded(mut self) -> Self {
        fn cut<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>) {
            if let Some(first) = map.keys().nth(NAMES).cloned() {
                map.split_off(&first);
            }
        }
        cut(&mut self.env);
        cut(&mut self.build_args);
        cut(&mut self.mounts);
        self.inputs.truncate(NAMES);
        self
    }

    /// The listings of its inputs, by their number.
    pub(crate) fn listings(&self) -> impl Iterator<Item = (usize, &Listing)> {
        self.inputs.iter().enumerate().filter_map(|(number, input)| match &input.kind {
            IngredientKind::Files { listing: Some(listing), .. } => Some((number, listing)),
            _ => None,
        })
    }

    /// Puts a listing that was stored beside it into its place.
    pub(crate) fn put_listing(&mut self, number: usize, read: Listing) {
        if let Some(Ingredient { kind: IngredientKind::Files { listing, .. }, .. }) =
            self.inputs.get_mut(number)
        {
            *listing = Some(read);
        }
    }
}
