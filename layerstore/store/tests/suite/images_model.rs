//! The image store against a model of it: two maps.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_layerstore_conformance::fixture::{bare, name, reference};
use lapstrake_layerstore_oci::{Digest, ImageId};
use lapstrake_layerstore_store::{ImageStore, LocalStore, NewImage, StoreError};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, Vec<u8>),
    Tag(u8, u8),
    Untag(u8),
    Delete(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (image, name) = (0..4u8, 0..4u8);
    let step = prop_oneof![
        4 => (image.clone(), prop::collection::vec(name.clone(), 0..3)).prop_map(|(image, names)| Step::Put(image, names)),
        4 => (image.clone(), name.clone()).prop_map(|(image, name)| Step::Tag(image, name)),
        2 => name.prop_map(Step::Untag),
        2 => image.prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

fn new_image(image: u8, names: &[u8]) -> NewImage {
    NewImage { names: names.iter().map(|n| name(&tag(*n))).collect(), ..bare(&image.to_string(), Vec::new()) }
}

fn id(image: u8) -> ImageId {
    ImageId(Digest::sha256_of(&new_image(image, &[]).config))
}

fn tag(name: u8) -> String {
    format!("app:{name}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_gives_what_the_model_says(steps in steps()) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut store = LocalStore::open(directory.path()).expect("open");
        let mut images: BTreeSet<u8> = BTreeSet::new();
        let mut names: BTreeMap<u8, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(image, new) => {
                    prop_assert_eq!(store.images.put(new_image(image, &new)).expect("put"), id(image));
                    images.insert(image);
                    names.extend(new.into_iter().map(|name| (name, image)));
                }
                Step::Tag(image, new) => match store.images.tag(&id(image), &name(&tag(new))) {
                    Ok(()) => {
                        prop_assert!(images.contains(&image));
                        names.insert(new, image);
                    }
                    Err(StoreError::NotFound { .. }) => prop_assert!(!images.contains(&image)),
                    Err(error) => panic!("{error}"),
                },
                Step::Untag(old) => match store.images.untag(&reference(&tag(old))) {
                    Ok(had) => prop_assert_eq!(names.remove(&old).map(id), Some(had)),
                    Err(StoreError::NotFound { .. }) => prop_assert!(!names.contains_key(&old)),
                    Err(error) => panic!("{error}"),
                },
                Step::Delete(image) => match store.images.delete_image(&id(image)) {
                    Ok(_) => {
                        prop_assert!(images.remove(&image));
                        names.retain(|_, of| *of != image);
                    }
                    Err(StoreError::NotFound { .. }) => prop_assert!(!images.contains(&image)),
                    Err(error) => panic!("{error}"),
                },
                Step::Reopen => {
                    drop(store);
                    store = LocalStore::open(directory.path()).expect("open");
                }
            }
            let list = store.images.list().expect("list");
            let there: BTreeSet<ImageId> = list.iter().map(|image| image.id.clone()).collect();
            prop_assert_eq!(there, images.iter().map(|image| id(*image)).collect::<BTreeSet<_>>());
            for image in list {
                let its: Vec<String> = image.names.iter().map(|name| name.reference.familiar()).collect();
                let of_model = names.iter().filter(|(_, of)| id(**of) == image.id);
                prop_assert_eq!(its, of_model.map(|(name, _)| tag(*name)).collect::<Vec<_>>());
            }
        }
    }
}
