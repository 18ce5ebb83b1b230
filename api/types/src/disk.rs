//! `GET /system/df`.

use serde_json::{Map, Value, json};

use crate::{ApiTypeError, ApiVersion, CacheRecord, Form, ImageSummary};

/// A kind of object that takes disk space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUsageObject {
    /// Containers; there are none here.
    Container,
    /// Images.
    Image,
    /// Volumes; there are none here.
    Volume,
    /// Build cache.
    BuildCache,
}

/// What a request for disk usage asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsageQuery {
    /// About which objects.
    pub objects: Vec<DiskUsageObject>,
    /// With all records.
    pub verbose: bool,
}

impl DiskUsageQuery {
    /// Reads and checks the parameters.
    pub fn parse(form: &Form, api: ApiVersion) -> Result<DiskUsageQuery, ApiTypeError> {
        use DiskUsageObject::{BuildCache, Container, Image, Volume};
        let objects = if !api.at_least(42) || !form.has("type") {
            vec![Container, Image, Volume, BuildCache]
        } else {
            form.all("type")
                .map(|name| match name {
                    "container" => Ok(Container),
                    "image" => Ok(Image),
                    "volume" => Ok(Volume),
                    "build-cache" => Ok(BuildCache),
                    other => Err(ApiTypeError::ObjectType(other.to_owned())),
                })
                .collect::<Result<_, _>>()?
        };
        Ok(DiskUsageQuery { objects, verbose: api.at_least(52) && form.flag("verbose") })
    }

    /// Whether this kind of object is asked about.
    pub fn wants(&self, object: DiskUsageObject) -> bool {
        self.objects.contains(&object)
    }
}

/// What images take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUsage {
    /// Bytes on disk in layers and blobs of images.
    pub total: i64,
    /// Every image, with its shared size counted.
    pub images: Vec<ImageSummary>,
}

/// What the build cache takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildCacheUsage {
    /// Every record.
    pub records: Vec<CacheRecord>,
}

impl BuildCacheUsage {
    /// Bytes of what no image shares: those are counted with the images. (Moby counts them twice; the docker CLI leaves them out where it adds
    /// up the records itself.)
    fn own(&self) -> i64 {
        self.records.iter().filter(|record| !record.shared).map(|record| record.size).sum()
    }
}

/// The answer, to be laid out by version; objects that were not asked about are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Images.
    pub images: Option<ImageUsage>,
    /// Containers were asked about.
    pub containers: bool,
    /// Volumes were asked about.
    pub volumes: bool,
    /// Build cache.
    pub build_cache: Option<BuildCacheUsage>,
}

impl DiskUsage {
    /// The layout of a version: lists up to 1.51; lists and sums from 1.52 on, of which `verbose` leaves out the lists.
    pub fn to_json(&self, api: ApiVersion, verbose: bool) -> Value {
        let mut out = Map::new();
        if !api.at_least(52) || !verbose {
            self.lists(api, &mut out);
        }
        if api.at_least(52) {
            self.sums(api, verbose, &mut out);
        }
        Value::Object(out)
    }

    fn lists(&self, api: ApiVersion, out: &mut Map<String, Value>) {
        let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
        // What was not asked about is null before 1.52, absent after.
        let absent = !api.at_least(52);
        match &self.images {
            Some(usage) => {
                put("LayersSize", json!(usage.total));
                put("Images", usage.images.iter().map(|image| image.with_virtual_size(api)).collect());
            }
            None if absent => {
                put("LayersSize", json!(0));
                put("Images", Value::Null);
            }
            None => {}
        }
        for (name, asked) in [("Containers", self.containers), ("Volumes", self.volumes)] {
            if asked {
                put(name, json!([]));
            } else if absent {
                put(name, Value::Null);
            }
        }
        let records = |usage: &BuildCacheUsage| -> Value {
            usage.records.iter().map(|record| record.to_json(api)).collect()
        };
        match &self.build_cache {
            Some(usage) => {
                put("BuildCache", records(usage));
            }
            None if absent => {
                put("BuildCache", Value::Null);
            }
            None => {}
        }
        if !api.at_least(42) {
            put("BuilderSize", json!(self.build_cache.iter().map(BuildCacheUsage::own).sum::<i64>()));
        }
    }

    fn sums(&self, api: ApiVersion, verbose: bool, out: &mut Map<String, Value>) {
        let mut put =
            |name: &str, total: i64, active: usize, size: i64, reclaimable: i64, items: Vec<Value>| {
                // Go leaves out what is zero.
                let mut sum = Map::new();
                for (field, number) in [
                    ("ActiveCount", i64::try_from(active).unwrap_or(i64::MAX)),
                    ("Reclaimable", reclaimable),
                    ("TotalCount", total),
                    ("TotalSize", size),
                ] {
                    if number != 0 {
                        sum.insert(field.to_owned(), json!(number));
                    }
                }
                if verbose && !items.is_empty() {
                    sum.insert("Items".to_owned(), json!(items));
                }
                out.insert(name.to_owned(), Value::Object(sum));
            };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(usage) = &self.images {
            let active = usage.images.iter().filter(|image| image.containers > 0).count();
            let reclaimable = usage
                .images
                .iter()
                .filter(|i| i.containers == 0)
                .map(|i| i.size - i.shared_size.max(0))
                .sum();
            let items = usage.images.iter().map(|image| image.with_virtual_size(api)).collect();
            put("ImageUsage", count(usage.images.len()), active, usage.total, reclaimable, items);
        }
        if self.containers {
            put("ContainerUsage", 0, 0, 0, 0, Vec::new());
        }
        if self.volumes {
            put("VolumeUsage", 0, 0, 0, 0, Vec::new());
        }
        if let Some(usage) = &self.build_cache {
            let records = &usage.records;
            let free = records.iter().filter(|record| !record.in_use && !record.shared);
            put(
                "BuildCacheUsage",
                count(records.len()),
                records.iter().filter(|record| record.in_use).count(),
                usage.own(),
                free.map(|record| record.size).sum(),
                records.iter().map(|record| record.to_json(api)).collect(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str, api: u16) -> Result<DiskUsageQuery, ApiTypeError> {
        DiskUsageQuery::parse(&Form::parse(text).unwrap(), ApiVersion::v1(api))
    }

    fn usage() -> DiskUsage {
        let image = ImageSummary {
            containers: 0,
            created: 1,
            id: "sha256:a".to_owned(),
            labels: None,
            parent_id: String::new(),
            descriptor: None,
            repo_digests: vec![],
            repo_tags: vec!["a:1".to_owned()],
            shared_size: 2,
            size: 5,
        };
        DiskUsage {
            images: Some(ImageUsage { total: 5, images: vec![image] }),
            containers: true,
            volumes: true,
            build_cache: Some(BuildCacheUsage::default()),
        }
    }

    #[test]
    fn types_are_chosen_from_1_42_on() {
        assert_eq!(query("type=image", 41).unwrap().objects.len(), 4);
        assert_eq!(query("type=image", 42).unwrap().objects, [DiskUsageObject::Image]);
        assert_eq!(query("type=nope", 42).unwrap_err().to_string(), "unknown object type: nope");
        assert!(!query("verbose=1", 51).unwrap().verbose);
        assert!(query("verbose=1", 52).unwrap().verbose);
    }

    #[test]
    fn each_version_has_its_layout() {
        let json = |api, verbose| usage().to_json(ApiVersion::v1(api), verbose);
        insta::assert_snapshot!(json(41, false), @r#"{"LayersSize":5,"Images":[{"Containers":0,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":["a:1"],"SharedSize":2,"Size":5,"VirtualSize":5}],"Containers":[],"Volumes":[],"BuildCache":[],"BuilderSize":0}"#);
        insta::assert_snapshot!(json(44, false), @r#"{"LayersSize":5,"Images":[{"Containers":0,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":["a:1"],"SharedSize":2,"Size":5}],"Containers":[],"Volumes":[],"BuildCache":[]}"#);
        insta::assert_snapshot!(json(52, false), @r#"{"LayersSize":5,"Images":[{"Containers":0,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":["a:1"],"SharedSize":2,"Size":5}],"Containers":[],"Volumes":[],"BuildCache":[],"ImageUsage":{"Reclaimable":3,"TotalCount":1,"TotalSize":5},"ContainerUsage":{},"VolumeUsage":{},"BuildCacheUsage":{}}"#);
        insta::assert_snapshot!(json(52, true), @r#"{"ImageUsage":{"Reclaimable":3,"TotalCount":1,"TotalSize":5,"Items":[{"Containers":0,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":["a:1"],"SharedSize":2,"Size":5}]},"ContainerUsage":{},"VolumeUsage":{},"BuildCacheUsage":{}}"#);
    }

    #[test]
    fn what_was_not_asked_about_is_null_or_absent() {
        let nothing = DiskUsage::default();
        insta::assert_snapshot!(nothing.to_json(ApiVersion::v1(42), false), @r#"{"LayersSize":0,"Images":null,"Containers":null,"Volumes":null,"BuildCache":null}"#);
        insta::assert_snapshot!(nothing.to_json(ApiVersion::v1(52), false), @"{}");
    }
}
