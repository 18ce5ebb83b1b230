//! The Docker Engine API as types: query parameters, answers, stream messages, and what differs between API versions.
//!
//! **For:** one place that knows Moby's wire rules. Strings become types here ([`Form`] → [`BuildQuery`], [`Filters`], …) and
//! types become JSON here, in the layout of the version that a client asked for.
//!
//! **Not for:** HTTP, stores or builds (`api/server`). Nothing here does I/O.
//!
//! ```text
//!   query string ─► Form ─► BuildQuery │ PruneQuery │ Filters │ …        (api/server acts)
//!   ImageSummary │ ImageInspect │ DiskUsage │ Info │ …  ── to_json(ApiVersion) ──► the client's layout
//!   StreamMessage ──► one line of a /build, /images/create or /events answer
//! ```
//!
//! Facts are from Moby's `api/swagger.yaml`, `daemon/server/router/**` and its v20.10 and v24 branches.
#![forbid(unsafe_code)]

mod auth;
mod build;
mod build_values;
mod cache;
mod disk;
mod error;
mod event;
mod filters;
mod form;
mod history;
mod image;
mod inspect;
mod stream;
mod system;
mod timestamp;
mod version;

pub use auth::{AuthConfig, AuthResponse, decode_auth_configs};
pub use build::{BuildQuery, BuilderVersion, KeepFailed, ProgressForm};
pub use build_values::{BuildOutput, ContextSource, HostEntry, HostGateway, NetworkMode, Ulimit};
pub use cache::{CachePruneReport, CacheRecord, PruneQuery};
pub use disk::{BuildCacheUsage, DiskUsage, DiskUsageObject, DiskUsageQuery, ImageUsage};
pub use error::ApiTypeError;
pub use event::{Actor, EventAction, EventFilter, EventMessage, EventType};
pub use filters::Filters;
pub use form::{Form, bool_value};
pub use history::{BuildDetail, BuildItem, BuildList, BuildReason, BuildVertex, BuildsRemoved};
pub use image::{
    DeleteItem, HistoryItem, ImagePruneReport, ImageSummary, decode_platform, decode_platforms,
    images_to_json, repo_tag_reference,
};
pub use inspect::{DriverData, ImageInspect, ImageMetadata, InspectRootFs};
pub use stream::{ErrorDetail, StreamMessage, StreamProgress, progress_bar};
pub use system::{ComponentVersion, DistributionInspect, Info, Limits, PlatformName, Proxies, SystemVersion};
pub use timestamp::{Timestamp, parse_duration, parse_time, parse_unix_time};
pub use version::ApiVersion;
