//! `SOURCE_DATE_EPOCH=context` and its like.

use axum::{Router, http::header, routing::get};
use lapstrake_tests::Workbench;

use crate::contexts::support::{build, client_of, directory, failure};

const DOCKERFILE: &str = "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo \"=$SOURCE_DATE_EPOCH\" > /epoch\n";

fn archive(dockerfile: &str) -> Vec<u8> {
    lapstrake_tests::Context::new(dockerfile).bytes()
}

/// A server of an archive whose files are of the year 2020, with and without a time of its own.
async fn server() -> String {
    let dated =
        || async { ([(header::LAST_MODIFIED, "Fri, 01 Jan 2021 00:00:00 GMT")], archive(DOCKERFILE)) };
    let app = Router::new()
        .route("/dated.tar", get(dated))
        .route("/plain.tar", get(|| async { archive(DOCKERFILE) }))
        .route("/page", get(|| async { "nothing to unpack" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downloaded_context_is_as_old_as_the_server_says_or_its_youngest_file() {
    let (bench, url) = (Workbench::new(), server().await);
    let client = client_of(&directory(&[]));
    for (path, seconds) in [("dated.tar", 1_609_459_200), ("plain.tar", 1_600_000_000)] {
        let context = format!("{url}/{path}");
        let attrs = [("context", context.as_str()), ("build-arg:SOURCE_DATE_EPOCH", "context")];
        build(&bench, &client, &attrs, "app").await.unwrap();
        assert_eq!(bench.read("app", "epoch"), format!("={seconds}\n"), "{path}");
        let created = bench.config("app").created.unwrap();
        let year = if path == "dated.tar" { "2021-01-01T00:00:00Z" } else { "2020-09-13T12:26:40Z" };
        assert_eq!(created.as_str(), year);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_directory_has_no_time() {
    let bench = Workbench::new();
    let dir = directory(&[("Dockerfile", DOCKERFILE)]);
    build(&bench, &client_of(&dir), &[("build-arg:SOURCE_DATE_EPOCH", "context")], "app").await.unwrap();
    assert_eq!(bench.read("app", "epoch"), "=\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn named_contexts_and_stages_of_one_download_have_times() {
    let (bench, url) = (Workbench::new(), server().await);
    let dir =
        directory(&[("Dockerfile", &format!("FROM scratch AS src\nADD {url}/dated.tar /\n{DOCKERFILE}"))]);
    let (dated, page) = (format!("{url}/dated.tar"), format!("{url}/page"));
    for (value, context, epoch) in [
        ("src", "docker-image://busybox", "1609459200"),
        ("there", &dated, "1609459200"),
        ("there", &page, ""),
    ] {
        let attrs = [("build-arg:SOURCE_DATE_EPOCH", value), ("context:there", context)];
        build(&bench, &client_of(&dir), &attrs, "app").await.unwrap();
        assert_eq!(bench.read("app", "epoch"), format!("={epoch}\n"), "{value} {context}");
    }
    let error = failure(&bench, &client_of(&dir), &[("build-arg:SOURCE_DATE_EPOCH", "nowhere")]).await;
    assert!(error.contains("invalid SOURCE_DATE_EPOCH: nowhere"), "{error}");
}
