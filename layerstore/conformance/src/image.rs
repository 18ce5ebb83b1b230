//! The suite of [`ImageStore`](lapstrake_layerstore_store::ImageStore).

use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, ImageId, MediaType, Reference};
use lapstrake_layerstore_store::{DeletedImage, ImageName, ImageRecord, NewImage, Resource, StoreError};

use crate::{
    Check, Fixture,
    fixture::{bare, name, reference},
};

/// Each check is given a store of its own.
pub const SUITE: &[(&str, Check)] = &[
    ("an image is read back as it was put", reads_back),
    ("the id is the digest of the config's bytes", id),
    ("putting an image that exists adds names, and a manifest if it had none", put_again),
    ("putting takes names from other images", put_takes_names),
    ("a put that fails changes nothing", put_fails_whole),
    ("what an image refers to must be there", put_refers),
    ("a config must be one, with the diff ids that are given", put_config),
    ("a name needs a tag or a digest, and must not look like an id", bad_names),
    ("a tag moves", tag_moves),
    ("a digested name keeps its target, and the tag beside a digest does not count", digested_names),
    ("tagging what is not there is refused", tag_absent),
    ("an image that lost its last tag is dangling", dangling),
    ("untagging leaves the image", untag),
    ("an image is found by name, by id and by unambiguous prefix", find),
    ("names win over ids", find_name_first),
    ("an ambiguous prefix is refused", find_ambiguous),
    ("what cannot be a name or id is malformed", find_malformed),
    ("the list has every image, newest first", list),
    ("deleting takes the names along, in order", delete),
    ("an image that is held cannot be deleted", delete_held),
    ("children are those made from an image, until it goes", children),
    ("a snapshot stays while an image has it", keeps_snapshot),
    ("a manifest stays while an image has it", keeps_manifest),
];

fn get(f: &Fixture, id: &ImageId) -> ImageRecord {
    f.images.get(id).expect("get").expect("is there")
}

fn names(f: &Fixture, id: &ImageId) -> Vec<String> {
    get(f, id).names.iter().map(|name| name.reference.familiar()).collect()
}

fn found(f: &Fixture, text: &str) -> ImageId {
    f.images.find(text).unwrap_or_else(|error| panic!("{text}: {error}")).id
}

fn not_found(f: &Fixture, text: &str) {
    let found = f.images.find(text);
    assert!(matches!(found, Err(StoreError::NotFound { kind: "image", .. })), "{text}: {found:?}");
}

fn target(f: &Fixture, text: &str) -> Descriptor {
    let digest = f.content.write_small(text.as_bytes()).expect("write");
    let document = format!(
        r#"{{"mediaType":"{}","digest":"{digest}","size":{}}}"#,
        MediaType::new("application/vnd.oci.image.manifest.v1+json").as_str(),
        text.len()
    );
    serde_json::from_str(&document).expect("a descriptor")
}

fn reads_back(f: &Fixture) {
    let manifest = target(f, "manifest");
    let parent = f.put("parent", &[]);
    let image = NewImage {
        parent: Some(parent),
        manifest: Some(manifest.digest.clone()),
        names: vec![name("b:1"), ImageName { target: Some(manifest), ..name("a:1") }],
        ..f.image("one")
    };
    let id = f.images.put(image.clone()).expect("put");
    let record = get(f, &id);
    assert_eq!(record.config, image.config);
    assert_eq!(record.top, image.top);
    assert_eq!(record.diff_ids, image.diff_ids);
    assert_eq!(record.parent, image.parent);
    assert_eq!(record.manifest, image.manifest);
    assert_eq!(record.names, [image.names[1].clone(), image.names[0].clone()], "in order of their text");
    assert!(record.last_tagged >= Some(record.stored));
    assert_eq!(f.images.get(&ImageId(Digest::sha256_of("none"))).expect("get"), None);
}

fn id(f: &Fixture) {
    // Not what our own writer would make of it: the bytes count, not what they mean.
    let config =
        br#"{ "architecture":"amd64", "os":"linux","rootfs":{"type":"layers","diff_ids":[]}, "x":1 }"#;
    let id = f.images.put(NewImage { config: config.to_vec(), ..bare("", vec![]) }).expect("put");
    assert_eq!(id, ImageId(Digest::sha256_of(config)));
    assert_eq!(get(f, &id).config, config);
    assert_eq!(get(f, &id).last_tagged, None);
}

fn put_again(f: &Fixture) {
    let id = f.put("one", &["a:1"]);
    let first = get(f, &id);
    let manifest = target(f, "manifest");
    let again = |manifest: &Descriptor, tag| NewImage {
        manifest: Some(manifest.digest.clone()),
        names: vec![name(tag)],
        ..bare("one", vec![])
    };
    assert_eq!(f.images.put(again(&manifest, "b:1")).expect("put"), id);
    assert_eq!(f.images.put(again(&target(f, "another"), "c:1")).expect("put"), id);
    let record = get(f, &id);
    assert_eq!(record.manifest, Some(manifest.digest));
    assert_eq!(names(f, &id), ["a:1", "b:1", "c:1"]);
    assert_eq!(record.stored, first.stored);
    assert_eq!(f.images.list().expect("list").len(), 1);
}

fn put_takes_names(f: &Fixture) {
    let old = f.put("old", &["app:1", "app:2"]);
    let new = f.put("new", &["app:1"]);
    assert_eq!(names(f, &old), ["app:2"]);
    assert_eq!(names(f, &new), ["app:1"]);
}

fn put_fails_whole(f: &Fixture) {
    let old = f.put("old", &["app:1"]);
    let image = NewImage { names: vec![name("app:1"), name("no-tag")], ..bare("new", vec![]) };
    assert!(matches!(f.images.put(image), Err(StoreError::Invalid { .. })));
    assert_eq!(f.images.list().expect("list").len(), 1);
    assert_eq!(names(f, &old), ["app:1"]);
}

fn put_refers(f: &Fixture) {
    let absent = Digest::sha256_of("absent");
    let refused = |image: NewImage, what: &str| {
        let result = f.images.put(image);
        assert!(matches!(&result, Err(StoreError::NotFound { kind, .. }) if *kind == what), "{result:?}");
    };
    refused(NewImage { parent: Some(ImageId(absent.clone())), ..bare("one", vec![]) }, "image");
    refused(NewImage { manifest: Some(absent), ..bare("one", vec![]) }, "blob");
    let image = f.image("one");
    f.records.remove(image.top.as_ref().expect("has one")).expect("remove");
    refused(image, "snapshot");
    let other = f.image("other").top;
    let result = f.images.put(NewImage { top: other, ..f.image("one") });
    assert!(matches!(result, Err(StoreError::Invalid { .. })), "the snapshot of another layer: {result:?}");
    assert!(f.images.list().expect("list").is_empty());
}

fn put_config(f: &Fixture) {
    for config in ["", "[]", "{", "null"] {
        let result = f.images.put(NewImage { config: config.into(), ..bare("", vec![]) });
        assert!(matches!(result, Err(StoreError::Malformed { kind: "image", .. })), "{config}: {result:?}");
    }
    let image = f.image("one");
    for wrong in [
        NewImage { diff_ids: vec![DiffId(Digest::sha256_of("other"))], ..image.clone() },
        NewImage { top: None, ..image.clone() },
        NewImage { top: image.top, ..bare("none", vec![]) },
    ] {
        assert!(matches!(f.images.put(wrong), Err(StoreError::Invalid { kind: "image", .. })));
    }
}

fn bad_names(f: &Fixture) {
    let id = f.put("one", &[]);
    for bad in ["app", "sha256:abc", "registry.example/team/app"] {
        assert!(matches!(f.images.tag(&id, &name(bad)), Err(StoreError::Invalid { .. })), "{bad}");
    }
    assert!(names(f, &id).is_empty());
}

fn tag_moves(f: &Fixture) {
    let (one, two) = (f.put("one", &["app:1"]), f.put("two", &[]));
    f.images.tag(&two, &name("app:1")).expect("tag");
    f.images.tag(&two, &name("app:1")).expect("tag again");
    assert!(names(f, &one).is_empty());
    assert_eq!(names(f, &two), ["app:1"]);
    assert_eq!(found(f, "app:1"), two);
}

fn digested_names(f: &Fixture) {
    let id = f.put("one", &[]);
    let manifest = target(f, "manifest");
    let reference = reference("app:1").with_digest(manifest.digest.clone());
    f.images
        .tag(&id, &ImageName { reference: reference.clone(), target: Some(manifest.clone()) })
        .expect("tag");
    let kept = Reference::parse(&format!("app@{}", manifest.digest)).expect("a reference");
    assert_eq!(get(f, &id).names, [ImageName { reference: kept.clone(), target: Some(manifest) }]);
    assert_eq!(found(f, &kept.familiar()), id);
    assert_eq!(found(f, &reference.to_string()), id);
    not_found(f, "app:1");
    assert_eq!(f.images.untag(&reference).expect("untag"), id);
    not_found(f, &kept.familiar());
}

fn tag_absent(f: &Fixture) {
    let absent = ImageId(Digest::sha256_of("absent"));
    assert!(matches!(f.images.tag(&absent, &name("a:1")), Err(StoreError::NotFound { kind: "image", .. })));
    not_found(f, "a:1");
}

fn dangling(f: &Fixture) {
    let id = f.put("one", &["app:1"]);
    assert!(!get(f, &id).is_dangling());
    f.put("two", &["app:1"]);
    assert!(get(f, &id).is_dangling());
    let digested = reference("app").with_digest(Digest::sha256_of("m"));
    f.images.tag(&id, &ImageName { reference: digested, target: None }).expect("tag");
    assert!(get(f, &id).is_dangling(), "a digest is no tag");
}

fn untag(f: &Fixture) {
    let id = f.put("one", &["app:1", "app:2"]);
    assert_eq!(f.images.untag(&reference("app:1")).expect("untag"), id);
    assert_eq!(names(f, &id), ["app:2"]);
    assert!(matches!(f.images.untag(&reference("app:1")), Err(StoreError::NotFound { kind: "image", .. })));
    assert_eq!(f.images.untag(&reference("app:2")).expect("untag"), id);
    assert!(get(f, &id).is_dangling());
}

fn find(f: &Fixture) {
    let id = f.put(
        "one",
        &["app", "registry.example:5000/team/app:2"].map(|n| if n == "app" { "app:latest" } else { n }),
    );
    f.put("two", &["app:other"]);
    for text in
        ["app", "app:latest", "library/app", "docker.io/library/app:latest", "index.docker.io/library/app"]
    {
        assert_eq!(found(f, text), id, "{text}");
    }
    assert_eq!(found(f, "registry.example:5000/team/app:2"), id);
    for text in [id.as_str(), id.hex(), id.short(), &id.hex()[..40], &id.as_str()[..30]] {
        assert_eq!(found(f, text), id, "{text}");
    }
    let absent = Digest::sha256_of("absent");
    for text in [
        "nothing",
        "app:3",
        "team/app:2",
        "registry.example:5000/team/app",
        absent.as_str(),
        absent.hex(),
        absent.short(),
    ] {
        not_found(f, text);
    }
}

fn find_name_first(f: &Fixture) {
    let one = f.put("one", &[]);
    let two = f.put("two", &[]);
    // A name that is also the beginning of the other's id.
    f.images.tag(&two, &name(&format!("{}:latest", one.short()))).expect("tag");
    assert_eq!(found(f, one.short()), two);
    assert_eq!(found(f, &one.hex()[..13]), one);
}

fn find_ambiguous(f: &Fixture) {
    // More images than hex digits: some two begin with the same one.
    let ids: Vec<ImageId> = (0..17).map(|n| f.put(&n.to_string(), &[])).collect();
    let first = |id: &ImageId| id.hex()[..1].to_owned();
    let shared = ids
        .iter()
        .map(first)
        .find(|digit| ids.iter().filter(|id| id.hex().starts_with(digit.as_str())).count() > 1)
        .expect("seventeen ids, sixteen digits");
    let result = f.images.find(&shared);
    assert!(
        matches!(&result, Err(StoreError::Ambiguous { kind: "image", id }) if *id == shared),
        "{result:?}"
    );
}

fn find_malformed(f: &Fixture) {
    for text in [
        "",
        "UPPER",
        "a b",
        "app:",
        ":1",
        "../../etc/passwd",
        "app@sha256:12",
        "%'; DROP TABLE image",
        "a\0b",
    ] {
        let result = f.images.find(text);
        assert!(
            matches!(&result, Err(StoreError::Malformed { kind: "image", id, .. }) if id == text),
            "{text:?}: {result:?}"
        );
    }
}

fn list(f: &Fixture) {
    assert!(f.images.list().expect("list").is_empty());
    let mut ids: Vec<ImageId> = (0..20).map(|n| f.put(&n.to_string(), &[&format!("app:{n}")])).collect();
    ids.reverse();
    let list = f.images.list().expect("list");
    assert_eq!(list.iter().map(|image| image.id.clone()).collect::<Vec<_>>(), ids);
    for image in list {
        assert_eq!(image, get(f, &image.id));
        assert_eq!(image.names.len(), 1);
    }
}

fn delete(f: &Fixture) {
    let id = f.put("one", &["b:1", "a:1"]);
    let other = f.put("two", &["c:1"]);
    assert_eq!(
        f.images.delete_image(&id).expect("delete"),
        [
            DeletedImage::Untagged(reference("a:1")),
            DeletedImage::Untagged(reference("b:1")),
            DeletedImage::Deleted(id.clone())
        ]
    );
    assert_eq!(f.images.get(&id).expect("get"), None);
    not_found(f, "a:1");
    assert_eq!(found(f, "c:1"), other);
    assert!(matches!(f.images.delete_image(&id), Err(StoreError::NotFound { kind: "image", .. })));
}

fn delete_held(f: &Fixture) {
    let id = f.put("one", &["a:1"]);
    let lease = f.leases.create();
    lease.hold(Resource::Image(id.clone()));
    let result = f.images.delete_image(&id);
    assert!(
        matches!(&result, Err(StoreError::InUse { kind: "image", id: of, .. }) if of == id.as_str()),
        "{result:?}"
    );
    assert_eq!(names(f, &id), ["a:1"]);
    drop(lease);
    f.images.delete_image(&id).expect("delete");
}

fn children(f: &Fixture) {
    let parent = f.put("parent", &[]);
    let child = |text: &str| {
        f.images.put(NewImage { parent: Some(parent.clone()), ..bare(text, vec![]) }).expect("put")
    };
    let (one, two) = (child("one"), child("two"));
    assert_eq!(f.images.children(&parent).expect("children"), [one.clone(), two]);
    assert!(f.images.children(&one).expect("children").is_empty());
    f.images.delete_image(&parent).expect("delete");
    assert_eq!(get(f, &one).parent, None);
}

fn keeps_snapshot(f: &Fixture) {
    let image = f.image("one");
    let top = image.top.clone().expect("has one");
    let id = f.images.put(image).expect("put");
    let result = f.records.remove(&top);
    assert!(
        matches!(&result, Err(StoreError::InUse { kind: "snapshot", by, .. }) if by.contains(id.as_str())),
        "{result:?}"
    );
    f.images.delete_image(&id).expect("delete");
    f.records.remove(&top).expect("remove");
}

fn keeps_manifest(f: &Fixture) {
    let manifest = target(f, "manifest").digest;
    let id = f.images.put(NewImage { manifest: Some(manifest.clone()), ..bare("one", vec![]) }).expect("put");
    let result = f.content.remove(&manifest);
    assert!(
        matches!(&result, Err(StoreError::InUse { kind: "blob", by, .. }) if by.contains(id.as_str())),
        "{result:?}"
    );
    assert!(f.content.info(&manifest).expect("info").is_some());
    f.images.delete_image(&id).expect("delete");
    f.content.remove(&manifest).expect("remove");
}
