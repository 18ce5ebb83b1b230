//! Images over the real local store.

use http::Method;
use lapstrake_layerstore_oci::{Digest, ImageId, Reference};
use lapstrake_layerstore_store::{ImageName, NewImage, Resource};

use crate::common::{self, Daemon};

fn tags(reply: &common::Reply) -> Vec<String> {
    let images = reply.json();
    let tags = images.as_array().unwrap().iter().flat_map(|image| image["RepoTags"].as_array().unwrap());
    tags.map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn lists_have_each_versions_layout() {
    let daemon = Daemon::start();
    daemon.image(&["one", "two2"], &["a:1", "a:2"]);
    daemon.image(&["three"], &[]);
    for version in ["1.24", "1.43", "1.44", "1.51"] {
        let reply = daemon.get(&format!("/v{version}/images/json")).await;
        insta::assert_snapshot!(format!("list-{version}"), reply.golden().replace("},{", "},\n{"));
    }
}

#[tokio::test]
async fn filters_choose_images() {
    let daemon = Daemon::start();
    daemon.image(&["one"], &["app:1", "registry:5000/team/app:2"]);
    daemon.image_with(&["two"], &["other:1"], |config| {
        config.created = Some("2024-01-01T00:00:00Z".to_owned())
            .map(|t| lapstrake_layerstore_oci::Timestamp::parse(&t).unwrap());
        config.config.labels.insert("new".to_owned(), "yes".to_owned());
    });
    let dangling = daemon.image(&["three"], &[]);
    let list = |filters: &'static str| {
        let daemon = &daemon;
        async move { tags(&daemon.get(&format!("/images/json?filters={filters}")).await) }
    };
    assert_eq!(list("").await, ["other:1", "app:1", "registry:5000/team/app:2"]);
    assert_eq!(list(r#"{"reference":["app"]}"#).await, ["app:1"]);
    assert_eq!(list(r#"{"reference":["reg*/*/app"]}"#).await, ["registry:5000/team/app:2"]);
    assert_eq!(list(r#"{"reference":["docker.io/library/app*"]}"#).await, ["app:1"]);
    assert_eq!(list(r#"{"reference":["library/app"]}"#).await, Vec::<String>::new());
    assert_eq!(list(r#"{"reference":["docker.io/library/app"]}"#).await, ["app:1"]);
    assert_eq!(list(r#"{"reference":{"o*":true}}"#).await, ["other:1"]);
    assert_eq!(list(r#"{"label":["new=yes"]}"#).await, ["other:1"]);
    assert_eq!(list(r#"{"since":["app:1"]}"#).await, ["other:1"]);
    assert_eq!(list(r#"{"before":["other:1"]}"#).await, ["app:1", "registry:5000/team/app:2"]);
    assert_eq!(list(r#"{"until":["2023-12-01"]}"#).await, ["app:1", "registry:5000/team/app:2"]);
    assert_eq!(list(r#"{"dangling":["false"]}"#).await.len(), 3);
    let only = daemon.get(r#"/images/json?filters={"dangling":["true"]}"#).await.json();
    assert_eq!(only.as_array().unwrap().len(), 1);
    assert_eq!(only[0]["Id"], dangling.as_str());
    let old = daemon.get("/v1.24/images/json?filter=other").await;
    assert_eq!(tags(&old), ["other:1"]);
    for (filters, message) in [
        (r#"{"nope":["x"]}"#, "invalid filter 'nope'"),
        (r#"{"dangling":["x"]}"#, "invalid filter 'dangling=[x]'"),
        (r#"{"reference":["[a"]}"#, "syntax error in pattern \"[a\""),
        (
            r#"{"until":["x"]}"#,
            "invalid value for 'until' filter: failed to parse value as time or duration: invalid seconds \"x\": invalid syntax",
        ),
    ] {
        let reply = daemon.get(&format!("/images/json?filters={filters}")).await;
        assert_eq!((reply.status.as_u16(), reply.json()["message"].as_str().unwrap()), (400, message));
    }
    assert_eq!(daemon.get(r#"/images/json?filters={"since":["nope"]}"#).await.status, 404);
}

#[tokio::test]
async fn shared_layers_are_counted_when_asked() {
    let daemon = Daemon::start();
    daemon.image(&["common", "1"], &["a:1"]);
    daemon.image(&["common", "22"], &["b:1"]);
    let images = daemon.get("/images/json?shared-size=true").await.json();
    for image in images.as_array().unwrap() {
        assert_eq!(image["SharedSize"], 6);
    }
    assert_eq!(daemon.get("/images/json").await.json()[0]["SharedSize"], -1);
    assert_eq!(daemon.get("/v1.41/images/json?shared-size=true").await.json()[0]["SharedSize"], -1);
}

#[tokio::test]
async fn inspect_and_history_tell_what_the_config_says() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one", "two2"], &["a:1"]);
    let text = daemon.get("/v1.41/images/a:1/json").await.golden();
    let at = text.find("\"LastTagTime\"").unwrap();
    insta::assert_snapshot!("inspect-1.41", format!("{}…", &text[..at]));
    let history = daemon.get(&format!("/images/{}/history", id.short())).await;
    insta::assert_snapshot!("history", history.golden().replace("},{", "},\n{"));
    for name in ["a:1", "docker.io/library/a:1", id.as_str(), id.hex(), id.short(), "a%3A1"] {
        assert_eq!(daemon.get(&format!("/images/{name}/json")).await.json()["Id"], id.as_str(), "{name}");
    }
    insta::assert_snapshot!(daemon.get("/images/nope/json").await.golden(), @r#"404 {"message":"No such image: nope:latest"}"#);
    insta::assert_snapshot!(daemon.get("/images/r:5000/x/y:1/json").await.golden(), @r#"404 {"message":"No such image: r:5000/x/y:1"}"#);
    insta::assert_snapshot!(daemon.get("/images/UP/json").await.golden(), @r#"400 {"message":"invalid reference format: repository name (library/UP) must be lowercase"}"#);
    let arm = r#"/images/a:1/json?platform={"os":"linux","architecture":"arm64"}"#;
    assert_eq!(daemon.get(arm).await.status, 404);
    let amd = r#"/images/a:1/json?platform={"os":"linux","architecture":"amd64"}"#;
    assert_eq!(daemon.get(amd).await.status, 200);
}

#[tokio::test]
async fn names_are_moved_and_checked() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["a:1"]);
    let reply = daemon.post("/images/a:1/tag?repo=registry:5000/b&tag=2").await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (201, ""));
    assert_eq!(daemon.get("/images/registry:5000/b:2/json").await.json()["Id"], id.as_str());
    insta::assert_snapshot!(daemon.post("/images/nope/tag?repo=b").await.golden(), @r#"404 {"message":"No such image: nope:latest"}"#);
    insta::assert_snapshot!(daemon.post("/images/a:1/tag?repo=sha256&tag=x").await.golden(), @r#"400 {"message":"refusing to create an ambiguous tag using digest algorithm as name"}"#);
    insta::assert_snapshot!(daemon.post("/images/a:1/tag?repo=b&tag=-").await.golden(), @r#"400 {"message":"invalid tag format"}"#);
    insta::assert_snapshot!(daemon.post("/images/a:1/tag").await.golden(), @r#"400 {"message":"a new name is needed: parameter repo is empty"}"#);
}

fn replace(text: &str, id: &ImageId) -> String {
    text.replace(id.as_str(), "<id>").replace(id.short(), "<short>")
}

#[tokio::test]
async fn deletion_of_a_name_untags_and_of_the_last_deletes() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one", "two"], &["a:1", "a:2"]);
    let other = daemon.image(&["one", "three"], &["b:1"]);
    let golden = |reply: common::Reply| replace(&reply.golden(), &id);
    insta::assert_snapshot!(golden(daemon.delete("/images/a:1").await), @r#"200 [{"Untagged":"a:1"}]"#);
    insta::assert_snapshot!("delete-last-name", golden(daemon.delete("/images/a:2").await));
    insta::assert_snapshot!(golden(daemon.delete("/images/a:2").await), @r#"404 {"message":"No such image: a:2"}"#);
    // The layer that the other image has too is still there.
    assert_eq!(daemon.get("/images/b:1/json").await.json()["Size"], 8);
    let gone = daemon.delete(&format!("/images/{other}")).await.json();
    let deleted = gone.as_array().unwrap().iter().filter(|item| item["Deleted"].is_string()).count();
    assert_eq!((gone[0]["Untagged"].as_str(), deleted), (Some("b:1"), 3));
    let mut left = 0;
    daemon
        .stores
        .snapshots
        .walk(&mut |_| {
            left += 1;
            true
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn an_id_with_several_repositories_needs_force() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["a:1", "b:1"]);
    let path = format!("/images/{}", id.short());
    insta::assert_snapshot!(replace(&daemon.delete(&path).await.golden(), &id), @r#"409 {"message":"conflict: unable to delete <short> (must be forced) - image is referenced in multiple repositories"}"#);
    let reply = daemon.delete(&format!("{path}?force=1")).await;
    assert_eq!(reply.status, 200);
    let items = reply.json();
    assert_eq!((items[0]["Untagged"].as_str(), items[1]["Untagged"].as_str()), (Some("a:1"), Some("b:1")));
    assert_eq!(items[2]["Deleted"], id.as_str());
}

#[tokio::test]
async fn digests_go_with_the_last_tag_of_their_repository() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["a:1"]);
    let digest = Digest::sha256_of("manifest");
    for repository in ["a", "c"] {
        let reference = Reference::parse(repository).unwrap().with_digest(digest.clone());
        daemon.stores.images.tag(&id, &ImageName { reference, target: None }).unwrap();
    }
    let reply = daemon.delete("/images/a:1").await.json();
    assert_eq!(reply[0]["Untagged"], "a:1");
    assert_eq!(reply[1]["Untagged"], format!("a@{digest}"));
    assert_eq!(reply.as_array().unwrap().len(), 2);
    let image = daemon.get(&format!("/images/{id}/json")).await.json();
    assert_eq!(image["RepoDigests"][0], format!("c@{digest}"));
}

#[tokio::test]
async fn parents_stay_with_children_and_go_with_the_last() {
    let daemon = Daemon::start();
    let parent = daemon.image(&["one"], &[]);
    let record = daemon.stores.images.get(&daemon.image(&["one", "two"], &[])).unwrap().unwrap();
    daemon.stores.images.delete_image(&record.id).unwrap();
    let child = daemon
        .stores
        .images
        .put(NewImage {
            config: record.config,
            top: record.top,
            diff_ids: record.diff_ids,
            parent: Some(parent.clone()),
            manifest: None,
            names: vec![ImageName { reference: Reference::parse("child:1").unwrap(), target: None }],
        })
        .unwrap();
    insta::assert_snapshot!(replace(&daemon.delete(&format!("/images/{parent}?force=1")).await.golden(), &parent), @r#"409 {"message":"conflict: unable to delete <short> (cannot be forced) - image has dependent child images"}"#);
    assert_eq!(daemon.get("/images/json").await.json().as_array().unwrap().len(), 1);
    assert_eq!(daemon.get("/images/json?all=1").await.json().as_array().unwrap().len(), 2);
    let reply = daemon.delete("/images/child:1").await.json();
    let deleted: Vec<&str> =
        reply.as_array().unwrap().iter().filter_map(|item| item["Deleted"].as_str()).collect();
    assert!(deleted.contains(&child.as_str()) && deleted.contains(&parent.as_str()), "{deleted:?}");
    assert!(daemon.stores.images.list().unwrap().is_empty());
}

#[tokio::test]
async fn an_image_that_a_build_holds_stays() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["a:1"]);
    let lease = daemon.stores.leases.create();
    lease.hold(Resource::Image(id.clone()));
    let reply = daemon.delete(&format!("/images/{id}")).await;
    assert_eq!(reply.status, 409, "{}", reply.text());
    assert!(reply.text().contains("cannot be forced"));
    assert!(daemon.stores.images.get(&id).unwrap().is_some());
}

#[tokio::test]
async fn prune_frees_what_it_says() {
    let daemon = Daemon::start();
    daemon.image(&["common", "kept"], &["kept:1"]);
    daemon.image(&["common", "dangling"], &[]);
    let before = lapstrake_layerstore_store::disk_usage(&daemon.stores).unwrap().on_disk();
    let report = daemon.post("/images/prune").await.json();
    let after = lapstrake_layerstore_store::disk_usage(&daemon.stores).unwrap().on_disk();
    assert!(before > after);
    assert_eq!(report["SpaceReclaimed"].as_u64().unwrap(), before - after);
    assert_eq!(report["ImagesDeleted"].as_array().unwrap().len(), 2);
    insta::assert_snapshot!(daemon.post("/images/prune").await.golden(), @r#"200 {"ImagesDeleted":null,"SpaceReclaimed":0}"#);
    let filtered = daemon.post(r#"/images/prune?filters={"dangling":["false"],"label!":["kind"]}"#).await;
    insta::assert_snapshot!(filtered.golden(), @r#"200 {"ImagesDeleted":null,"SpaceReclaimed":0}"#);
    let all =
        daemon.post(r#"/images/prune?filters={"dangling":{"false":true},"until":{"1h":true}}"#).await.json();
    assert_eq!(all["ImagesDeleted"][0]["Untagged"], "kept:1");
    assert!(daemon.stores.images.list().unwrap().is_empty());
    insta::assert_snapshot!(daemon.post(r#"/images/prune?filters={"before":["x"]}"#).await.golden(), @r#"400 {"message":"invalid filter 'before'"}"#);
}

#[tokio::test]
async fn a_thousand_images_are_listed() {
    let daemon = Daemon::start();
    for n in 0..200 {
        daemon.image_with(&["one"], &[&format!("many:{n}")], |config| config.author = n.to_string());
    }
    let reply = daemon.send(Method::GET, "/images/json", &[], "").await;
    assert_eq!(reply.json().as_array().unwrap().len(), 200);
}
