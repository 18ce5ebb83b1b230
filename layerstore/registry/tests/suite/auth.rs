//! Who may ask: challenges, tokens, and secrets that stay where they belong.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use lapstrake_layerstore_oci::{Descriptor, MediaType};
use lapstrake_layerstore_registry::{
    CredentialSource, Credentials, CredentialsError, ErrorKind, PushSource, RegistryClient, RegistryConfig,
    RegistryError, Secret, StaticCredentials, Token, TokenRequest,
};

use crate::common::*;

const PASSWORD: &str = "hunter2-s3cret";

fn password() -> Credentials {
    Credentials::Password { username: "alice".to_owned(), password: Secret::new(PASSWORD) }
}

/// A token registry: tokens are `token-<n>`, and only those in `good` are accepted.
struct Guarded {
    fake: Fake,
    tokens: Fake,
}

async fn guarded(image: &Image, token_reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Guarded {
    let tokens = Fake::start(token_reply).await;
    let (image, realm) = (image.clone(), format!("http://{}/token", tokens.host));
    let fake = Fake::start(move |seen| {
        if seen.header("authorization").is_some_and(|a| a.starts_with("Bearer good")) {
            return image.serve(seen).into();
        }
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"test registry\",scope=\"repository:team/app:pull\"");
        status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap().into()
    })
    .await;
    Guarded { fake, tokens }
}

fn token(name: &str) -> Reply {
    let body = format!(r#"{{"token":"{name}","expires_in":300}}"#);
    status(200).header("content-type", "application/json").body(Body::from(body)).unwrap().into()
}

async fn pull(client: &RegistryClient, fake: &Fake) -> Result<Yard, RegistryError> {
    let yard = Yard::new();
    client.pull(&fake.reference(), &linux(), &yard.target, &all_layers, &yard.progress).await?;
    Ok(yard)
}

#[tokio::test]
async fn one_token_serves_a_whole_pull() {
    let image = Image::new(1, &linux(), &[10, 20, 30, 40]);
    let g = guarded(&image, |_| token("good")).await;
    let client = client();
    pull(&client, &g.fake).await.unwrap();
    let log = g.tokens.log.lock().unwrap().clone();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(log[0].query, "service=test+registry&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(log[0].header("authorization"), None);
    // Other credentials, other tokens.
    pull(&client.with_credentials(Arc::new(StaticCredentials::new())), &g.fake).await.unwrap();
    assert_eq!(g.tokens.log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_password_is_told_to_the_token_endpoint_only() {
    let image = Image::new(1, &linux(), &[10]);
    let g = guarded(&image, |_| token("good")).await;
    let source = StaticCredentials::new().with(&format!("https://{}/v1/", g.fake.host), password());
    pull(&client().with_credentials(Arc::new(source)), &g.fake).await.unwrap();
    let log = g.tokens.log.lock().unwrap().clone();
    // base64 of alice:hunter2-s3cret
    assert_eq!(log[0].header("authorization"), Some("Basic YWxpY2U6aHVudGVyMi1zM2NyZXQ="));
    assert!(log[0].query.contains("account=alice"));
    let registry = g.fake.log.lock().unwrap().clone();
    assert!(registry.iter().all(|s| !s.header("authorization").unwrap_or_default().contains("Basic")));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let image = Image::new(1, &linux(), &[10]);
    let g = guarded(&image, |_| token("good")).await;
    let source =
        StaticCredentials::new().with(&g.fake.host, Credentials::from_pair("", "refresh+me").unwrap());
    pull(&client().with_credentials(Arc::new(source)), &g.fake).await.unwrap();
    let log = g.tokens.log.lock().unwrap().clone();
    assert_eq!(log[0].method, "POST");
    let form = String::from_utf8(log[0].body.clone()).unwrap();
    assert!(
        form.starts_with("grant_type=refresh_token&refresh_token=refresh%2Bme&service=test+registry"),
        "{form}"
    );
    assert!(form.ends_with("scope=repository%3Ateam%2Fapp%3Apull"), "{form}");
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let image = Image::new(1, &linux(), &[10]);
    let g = guarded(&image, |_| token("bad")).await;
    let source =
        StaticCredentials::new().with(&g.fake.host, Credentials::RegistryToken(Secret::new("good one")));
    pull(&client().with_credentials(Arc::new(source)), &g.fake).await.unwrap();
    assert_eq!(g.tokens.log.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_source_may_fetch_tokens_itself() {
    struct Session(Mutex<Vec<TokenRequest>>);
    impl CredentialSource for Session {
        fn credentials<'a>(
            &'a self,
            _: &'a str,
        ) -> futures::future::BoxFuture<'a, Result<Option<Credentials>, CredentialsError>> {
            Box::pin(async { Ok(None) })
        }
        fn token<'a>(
            &'a self,
            r: &'a TokenRequest,
        ) -> futures::future::BoxFuture<'a, Result<Option<Token>, CredentialsError>> {
            self.0.lock().unwrap().push(r.clone());
            Box::pin(async { Ok(Some(Token { token: Secret::new("good"), expires_in: 60 })) })
        }
    }
    let g = guarded(&Image::new(1, &linux(), &[10]), |_| token("bad")).await;
    let session = Arc::new(Session(Mutex::default()));
    pull(&client().with_credentials(session.clone()), &g.fake).await.unwrap();
    let asked = session.0.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].host.as_str(), asked[0].service.as_str()), (g.fake.host.as_str(), "test registry"));
    assert_eq!(g.tokens.log.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn an_expired_token_is_replaced_once() {
    let image = Image::new(1, &linux(), &[10, 20]);
    let served = image.clone();
    let tokens = Fake::start(|s| token(&format!("good{}", s.nth))).await;
    let realm = format!("http://{}/token", tokens.host);
    let fake = Fake::start(move |seen| {
        // The first token is good for the manifest only.
        let by = seen.header("authorization").unwrap_or_default();
        if by == "Bearer good1" || (by == "Bearer good0" && seen.path.contains("/manifests/")) {
            return served.serve(seen).into();
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=s,error=\"invalid_token\"");
        status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap().into()
    })
    .await;
    pull(&client(), &fake).await.unwrap();
    assert_eq!(tokens.log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn denial_is_told_in_dockers_words_and_without_secrets() {
    let fake = Fake::start(|seen| {
        let challenge = if seen.header("authorization").is_some() {
            "Bearer realm=\"http://127.0.0.1:1/\",error=\"insufficient_scope\""
        } else {
            "Basic realm=\"x\""
        };
        status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap().into()
    })
    .await;
    let source = StaticCredentials::new().with(&fake.host, password());
    assert!(!format!("{source:?}").contains(PASSWORD));
    let e = client().with_credentials(Arc::new(source)).resolve(&fake.reference()).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "pull access denied for {}/team/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            fake.host
        )
    );
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(!format!("{e:?}").contains(PASSWORD));
}

#[tokio::test]
async fn a_token_endpoint_that_refuses_is_quoted() {
    let g = guarded(&Image::new(1, &linux(), &[10]), |_| {
        let body = r#"{"details":"incorrect username or password"}"#;
        status(401).header("content-type", "application/json").body(Body::from(body)).unwrap().into()
    })
    .await;
    let source = StaticCredentials::new().with(&g.fake.host, password());
    let e = pull(&client().with_credentials(Arc::new(source)), &g.fake).await.map(drop).unwrap_err();
    assert!(matches!(e, RegistryError::Unauthorized { .. }));
    assert!(e.to_string().ends_with("incorrect username or password"), "{e}");
    // To a stranger it is a denial: the repository may not exist at all.
    let e = pull(&client(), &g.fake).await.map(drop).unwrap_err();
    assert!(matches!(e, RegistryError::Denied { .. }), "{e}");
}

#[tokio::test]
async fn a_token_answer_without_a_token_is_not_quoted() {
    for body in ["{}", "not json but sekrit", r#"{"token":"two\nlines-sekrit"}"#] {
        let g = guarded(&Image::new(1, &linux(), &[10]), move |_| {
            status(200).body(Body::from(body)).unwrap().into()
        })
        .await;
        let e = pull(&client(), &g.fake).await.map(drop).unwrap_err();
        assert!(matches!(e, RegistryError::Auth { .. }), "{e}");
        assert!(!format!("{e:?}").contains("sekrit"));
    }
}

#[tokio::test]
async fn a_huge_or_endless_token_answer_is_cut_off() {
    for is_endless in [false, true] {
        let g = guarded(&Image::new(1, &linux(), &[10]), move |_| {
            let body = match is_endless {
                false => Body::from(format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20))),
                true => {
                    let piece = || Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 64 << 10]));
                    Body::from_stream(futures::stream::repeat_with(piece))
                }
            };
            status(200).body(body).unwrap().into()
        })
        .await;
        let e = pull(&client(), &g.fake).await.map(drop).unwrap_err();
        assert!(matches!(e, RegistryError::TooLarge { limit: 1_048_576, .. }), "{e}");
    }
}

#[tokio::test]
async fn authorization_does_not_follow_an_upload_to_another_host() {
    let elsewhere = Fake::start(|_| status(201).body(Body::empty()).unwrap().into()).await;
    let to = elsewhere.host.clone();
    let fake = Fake::start(move |seen| {
        if seen.header("authorization").is_none() {
            return status(401).header("www-authenticate", "Basic").body(Body::empty()).unwrap().into();
        }
        match seen.method.as_str() {
            "HEAD" => error(404, "BLOB_UNKNOWN", "").into(),
            "POST" => {
                let location = format!("http://{to}/upload?key=SIGNATURE");
                status(202).header("location", location).body(Body::empty()).unwrap().into()
            }
            _ => status(201).body(Body::empty()).unwrap().into(),
        }
    })
    .await;
    let (yard, image) = (Yard::new(), Image::new(1, &linux(), &[1000]));
    yard.put_image(&image);
    let (content, root) = (yard.target.content.clone(), image.root().clone());
    let source = PushSource { content, root, mounts: Default::default() };
    let credentials = StaticCredentials::new().with(&fake.host, password());
    let client = client().with_credentials(Arc::new(credentials));
    client.push(&fake.reference(), &source, &yard.progress).await.unwrap();
    let log = elsewhere.log.lock().unwrap().clone();
    assert_eq!(log.len(), 2, "the layer and the config");
    assert!(log.iter().all(|seen| seen.method == "PUT" && seen.header("authorization").is_none()), "{log:?}");
}

#[tokio::test]
async fn nobody_is_told_a_password_in_the_clear() {
    for realm in ["http://auth.example.org/token", "ftp://127.0.0.1/", "https://a:b@127.0.0.1/", "nonsense"] {
        let fake = Fake::start(move |_| {
            let challenge = format!("Bearer realm=\"{realm}\"");
            status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap().into()
        })
        .await;
        let source = StaticCredentials::new().with(&fake.host, password());
        let client = client().with_credentials(Arc::new(source));
        let e = client.resolve(&fake.reference()).await.unwrap_err();
        // Over plain HTTP itself, a registry may name a plain endpoint (which here cannot be reached).
        let refused = matches!(e, RegistryError::Auth { .. });
        let unreachable = matches!(e, RegistryError::Connect { .. } | RegistryError::Transport { .. });
        assert_eq!(refused, !realm.starts_with("http://"), "{realm}: {e}");
        assert!(refused || unreachable, "{realm}: {e}");
    }
}

#[tokio::test]
async fn authorization_does_not_follow_a_redirect_to_another_host() {
    let image = Image::new(1, &linux(), &[1000]);
    let bytes = image.blobs[&image.layer(0).digest].clone();
    let elsewhere = Fake::start(move |_| status(200).body(Body::from(bytes.clone())).unwrap().into()).await;
    let (served, to) = (image.clone(), elsewhere.host.clone());
    let fake = Fake::start(move |seen| {
        if seen.header("authorization").is_none() {
            return status(401).header("www-authenticate", "Basic").body(Body::empty()).unwrap().into();
        }
        if seen.is_blob(served.layer(0)) {
            let location = format!("http://{to}/signed?key=SIGNATURE");
            return status(307).header("location", location).body(Body::empty()).unwrap().into();
        }
        served.serve(seen).into()
    })
    .await;
    let source = StaticCredentials::new().with(&fake.host, password());
    let yard = pull(&client().with_credentials(Arc::new(source)), &fake).await.unwrap();
    assert!(yard.has(&image.layer(0).digest));
    let log = elsewhere.log.lock().unwrap().clone();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].header("authorization"), None);
    assert_eq!(log[0].query, "key=SIGNATURE");
}

#[tokio::test]
async fn a_blob_host_that_refuses_is_not_the_registry_denying() {
    let image = Image::new(1, &linux(), &[1000]);
    let elsewhere =
        Fake::start(|_| status(403).body(Body::from("<Error>expired</Error>")).unwrap().into()).await;
    let (served, to) = (image.clone(), elsewhere.host.clone());
    let fake = Fake::start(move |seen| {
        if seen.is_blob(served.layer(0)) {
            let location = format!("http://{to}/signed?key=SIGNATURE");
            return status(307).header("location", location).body(Body::empty()).unwrap().into();
        }
        served.serve(seen).into()
    })
    .await;
    let e = pull(&client(), &fake).await.map(drop).unwrap_err();
    assert!(matches!(&e, RegistryError::Status { host, .. } if *host == elsewhere.host), "{e}");
    assert!(!format!("{e:?}").contains("SIGNATURE"));
}

#[tokio::test]
async fn redirects_end_and_their_signed_urls_are_not_told() {
    let fake = Fake::start(|seen| {
        let next = format!("/round?sig=SECRETSIG&n={}", seen.query.len());
        status(302).header("location", next).body(Body::empty()).unwrap().into()
    })
    .await;
    let e = client().resolve(&fake.reference()).await.unwrap_err();
    assert!(matches!(e, RegistryError::Redirect { .. }), "{e}");
    let fake = Fake::start(|_| {
        status(302)
            .header("location", "http://127.0.0.1:1/?sig=SECRETSIG")
            .body(Body::empty())
            .unwrap()
            .into()
    })
    .await;
    let e = client().resolve(&fake.reference()).await.unwrap_err();
    assert!(!format!("{e:?} {e}").contains("SECRETSIG"), "{e:?}");
}

#[tokio::test]
async fn credentials_are_checked_as_login_does() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        Some("Basic YWxpY2U6aHVudGVyMi1zM2NyZXQ=") => status(200).body(Body::from("{}")).unwrap().into(),
        _ => {
            let r = status(401).header("www-authenticate", "Basic realm=\"r\"");
            r.body(Body::from(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#))
                .unwrap()
                .into()
        }
    })
    .await;
    let with =
        |c: Credentials| client().with_credentials(Arc::new(StaticCredentials::new().with(&fake.host, c)));
    with(password()).check_credentials(&fake.host).await.unwrap();
    let wrong = Credentials::Password { username: "alice".to_owned(), password: Secret::new("no") };
    let e = with(wrong).check_credentials(&fake.host).await.unwrap_err();
    assert_eq!(e.to_string(), format!("{}: login: unauthorized: authentication required", fake.host));
    let e = client().check_credentials(&fake.host).await.unwrap_err();
    assert!(e.to_string().ends_with("no basic auth credentials"), "{e}");
}

#[tokio::test]
async fn pushing_asks_for_the_right_scope() {
    let tokens = Fake::start(|_| token("good")).await;
    let realm = format!("http://{}/token", tokens.host);
    let fake = Fake::start(move |seen| {
        if seen.header("authorization").is_none() {
            let challenge = format!("Bearer realm=\"{realm}\",service=s");
            return status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap().into();
        }
        error(403, "DENIED", "read only").into()
    })
    .await;
    let (yard, image) = (Yard::new(), Image::new(1, &linux(), &[5]));
    yard.put_image(&image);
    let source = PushSource {
        content: yard.target.content.clone(),
        root: image.root().clone(),
        mounts: Default::default(),
    };
    let e = client().push(&fake.reference(), &source, &yard.progress).await.unwrap_err();
    assert!(e.to_string().starts_with(&format!("push access denied for {}/team/app", fake.host)), "{e}");
    assert!(tokens.log.lock().unwrap()[0].query.ends_with("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"));
}

#[tokio::test]
async fn pushing_what_is_no_manifest_is_refused_before_anything_is_sent() {
    let fake = Fake::start(|_| error(500, "UNKNOWN", "").into()).await;
    let yard = Yard::new();
    yard.put(b"{}");
    let source = PushSource {
        content: yard.target.content.clone(),
        root: Descriptor::of(MediaType::OCI_EMPTY, b"{}"),
        mounts: Default::default(),
    };
    let client = RegistryClient::new(RegistryConfig::default(), options());
    let e = client.push(&fake.reference(), &source, &yard.progress).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(fake.log.lock().unwrap().is_empty());
}
