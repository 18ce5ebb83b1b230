//! How BuildKit's versions differ in the keys they make of the same op.

/// Versions of BuildKit that make the same keys, newest first; each is named for the first of them.
///
/// Facts: `solver/pb/{ops.pb.go,json.go}` and `solver/llbsolver/ops/{exec,file}.go` at the tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    /// 0.18 and later.
    V0_18,
    /// 0.17: generated protobuf code without JSON names for what is one of several.
    V0_17,
    /// 0.15 and 0.16: gogo's protobuf code, which writes indexes even if they are 0.
    V0_15,
    /// 0.14: secrets and ssh agents are mounts of input 0.
    V0_14,
    /// 0.13: a copy cannot be told to replace what is in its way.
    V0_13,
    /// 0.11 and 0.12: an input's root counts as nothing selected, and all of a cache mount's options count.
    V0_11,
    /// 0.10: stubs of mounts stay where they are.
    V0_10,
    /// 0.8 and 0.9: a tmpfs has no size.
    V0_8,
}

impl Dialect {
    /// What today's BuildKit makes.
    pub(super) const TODAY: Self = Self::V0_18;
    /// All of them, today's first.
    pub(super) const ALL: [Self; 8] = [
        Self::TODAY,
        Self::V0_17,
        Self::V0_15,
        Self::V0_14,
        Self::V0_13,
        Self::V0_11,
        Self::V0_10,
        Self::V0_8,
    ];

    fn since(self, first: Self) -> bool {
        self <= first
    }

    /// Whether an index of 0 is written.
    pub(super) fn writes_zero_indexes(self) -> bool {
        !self.since(Self::V0_17)
    }

    /// The fields of a user that is given by name, and of one by number.
    pub(super) fn user_fields(self) -> (&'static str, &'static str) {
        match self {
            Self::V0_18 => ("byName", "byId"),
            Self::V0_17 => ("ByName", "ByID"),
            _ => ("byName", "byID"),
        }
    }

    /// Whether a mount that is not of any input says so, rather than that it is of the first.
    pub(super) fn secrets_have_no_input(self) -> bool {
        self.since(Self::V0_15)
    }

    pub(super) fn replaces_at_destination(self) -> bool {
        self.since(Self::V0_14)
    }

    pub(super) fn selects_roots(self) -> bool {
        self.since(Self::V0_13)
    }

    /// Whether a merge or a diff is known by the digest of its JSON, rather than by the JSON.
    pub(super) fn digests_trees(self) -> bool {
        self.since(Self::V0_13)
    }

    pub(super) fn clears_cache_options(self) -> bool {
        self.since(Self::V0_13)
    }

    pub(super) fn removes_mount_stubs(self) -> bool {
        self.since(Self::V0_11)
    }

    pub(super) fn sizes_tmpfs(self) -> bool {
        self.since(Self::V0_10)
    }
}

/// Some of BuildKit's versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Versions(u8);

impl Versions {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Every one.
    pub const ALL: Self = Self(u8::MAX);
    /// Those that make today's keys.
    pub const TODAY: Self = Self::of(Dialect::TODAY);
    /// 0.11 and later.
    pub const SINCE_0_11: Self = Self::ALL.without(Self::of(Dialect::V0_10)).without(Self::of(Dialect::V0_8));
    /// 0.8 and 0.9.
    pub const BEFORE_0_10: Self = Self::of(Dialect::V0_8);

    const fn of(dialect: Dialect) -> Self {
        Self(1 << dialect as u8)
    }

    /// These and those.
    #[must_use]
    pub fn or(self, those: Self) -> Self {
        Self(self.0 | those.0)
    }

    /// Those of these that are among those.
    #[must_use]
    pub fn and(self, those: Self) -> Self {
        Self(self.0 & those.0)
    }

    /// These but for those.
    #[must_use]
    pub const fn without(self, those: Self) -> Self {
        Self(self.0 & !those.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl From<Dialect> for Versions {
    fn from(dialect: Dialect) -> Self {
        Self::of(dialect)
    }
}
