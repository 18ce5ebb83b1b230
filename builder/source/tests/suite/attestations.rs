//! What is attested of an image in a registry, and who signed that.

use lapstrake_builder_dockerfile::{ImageOrigin, ImageQuery};
use lapstrake_builder_llb::ResolveMode;
use lapstrake_builder_source::{AttestationChain, SourceError};
use lapstrake_layerstore_conformance::registry::{Fake, Image, document, error};
use lapstrake_layerstore_oci::{Descriptor, Digest, Index, Manifest, MediaType, Platform};

use crate::common::Bench;

const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
const SPDX: &str = "https://spdx.dev/Document";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const COSIGN: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Where a registry lists what is about a manifest.
#[derive(Clone, Copy, PartialEq)]
enum Listed {
    /// Where it should.
    Here,
    /// Under a tag.
    ByTag,
    /// Nowhere.
    Nowhere,
}

/// An image for this machine and another one, the first attested and signed.
struct Signed {
    all: Image,
    image: Digest,
    attestation: Digest,
    signatures: Vec<Descriptor>,
    statements: Vec<Digest>,
}

fn manifest(all: &mut Image, layers: Vec<Descriptor>) -> Descriptor {
    let config = Descriptor::of(MediaType::OCI_EMPTY, b"{}");
    let bytes = Manifest::new(MediaType::OCI_MANIFEST, config, layers).to_json().unwrap();
    all.add(MediaType::OCI_MANIFEST, bytes)
}

fn blob(all: &mut Image, media_type: MediaType, text: &str) -> Descriptor {
    let blob = Descriptor::of(media_type, text.as_bytes());
    all.blobs.insert(blob.digest.clone(), text.as_bytes().to_vec());
    blob
}

impl Signed {
    fn new() -> Self {
        let host = Platform::host();
        let (own, other) =
            (Image::new(1, &host, &[10]), Image::new(2, &Platform::new("plan9", "386"), &[10]));
        let mut all = Image::index(&[(&host, &own), (&Platform::new("plan9", "386"), &other)]);
        let layers: Vec<Descriptor> = [(PROVENANCE, "how"), (SPDX, "what")]
            .map(|(kind, text)| {
                let mut layer = blob(&mut all, MediaType::IN_TOTO, text);
                layer.annotations.insert("in-toto.io/predicate-type".to_owned(), kind.to_owned());
                layer
            })
            .into();
        let statements = layers.iter().map(|layer| layer.digest.clone()).collect();
        let mut attestation = manifest(&mut all, layers).with_platform(Platform::new("unknown", "unknown"));
        let said = [
            ("vnd.docker.reference.type", "attestation-manifest".to_owned()),
            ("vnd.docker.reference.digest", own.root().digest.to_string()),
        ];
        attestation.annotations = said.map(|(key, value)| (key.to_owned(), value)).into();
        let signatures = [COSIGN, BUNDLE, "application/other"].map(|kind| {
            let layer = blob(&mut all, MediaType::from(BUNDLE), &format!("signed by {kind}"));
            Descriptor { artifact_type: Some(kind.to_owned()), ..manifest(&mut all, vec![layer]) }
        });
        let attestation_digest = attestation.digest.clone();
        let named = [(&host, &own), (&Platform::new("plan9", "386"), &other)]
            .map(|(platform, image)| image.root().clone().with_platform(platform.clone()));
        let index = Index::new(MediaType::OCI_INDEX, named.into_iter().chain([attestation]).collect());
        all.root = Some(all.add(MediaType::OCI_INDEX, index.to_json().unwrap()));
        Self {
            image: own.root().digest.clone(),
            attestation: attestation_digest,
            signatures: signatures.into(),
            statements,
            all,
        }
    }

    async fn serve(&self, listed: Listed) -> Fake {
        let (all, about) = (self.all.clone(), self.attestation.clone());
        let list = Index::new(MediaType::OCI_INDEX, self.signatures.clone()).to_json().unwrap();
        Fake::start(move |seen| {
            let place = match listed {
                Listed::Here => format!("/referrers/{about}"),
                Listed::ByTag => format!("/manifests/sha256-{}", about.hex()),
                Listed::Nowhere => "nowhere".to_owned(),
            };
            if seen.path.ends_with(&place) {
                return document(&MediaType::OCI_INDEX, &Digest::sha256_of(&list), &list).into();
            }
            if seen.path.contains("/referrers/") {
                return error(404, "NOT_FOUND", "nothing is known of this").into();
            }
            all.serve(seen).into()
        })
        .await
    }
}

async fn ask(
    fake: &Fake,
    platform: Platform,
    kinds: &[&str],
) -> Result<Option<AttestationChain>, SourceError> {
    let bench = Bench::new();
    let query = ImageQuery {
        origin: ImageOrigin::registry(ResolveMode::Default),
        reference: fake.reference().with_default_tag(),
        platform,
    };
    let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    bench.sources.attestations(&bench.context(), &query, &kinds).await
}

fn digests(chain: &AttestationChain) -> Vec<&Digest> {
    chain.blobs.iter().map(|(document, _)| &document.digest).collect()
}

#[tokio::test]
async fn a_chain_leads_from_the_name_to_statements_and_one_signature_of_them() {
    let signed = Signed::new();
    for listed in [Listed::Here, Listed::ByTag] {
        let fake = signed.serve(listed).await;
        let chain = ask(&fake, Platform::host(), &[PROVENANCE]).await.unwrap().unwrap();
        assert_eq!(chain.root, signed.all.root().digest);
        assert_eq!(chain.image_manifest.as_ref(), Some(&signed.image));
        assert_eq!(chain.attestation_manifest.as_ref(), Some(&signed.attestation));
        // A bundle goes before cosign's older form, wherever it stands.
        let signature = &signed.signatures[1].digest;
        assert_eq!(chain.signature_manifests, std::slice::from_ref(signature));
        let bundle = Digest::sha256_of(format!("signed by {BUNDLE}"));
        let expected = [&chain.root, &signed.attestation, signature, &bundle, &signed.statements[0]];
        assert_eq!(digests(&chain), expected, "and neither the image's manifest nor other statements");
        for (document, bytes) in &chain.blobs {
            assert_eq!(document.digest, Digest::sha256_of(bytes));
        }
        assert_eq!(chain.blobs[4].0.annotations["in-toto.io/predicate-type"], PROVENANCE);
    }
}

#[tokio::test]
async fn what_nobody_attested_or_signed_has_a_shorter_chain() {
    let signed = Signed::new();
    let fake = signed.serve(Listed::Nowhere).await;
    let unsigned = ask(&fake, Platform::host(), &[]).await.unwrap().unwrap();
    assert_eq!(digests(&unsigned), [&unsigned.root, &signed.attestation]);
    assert!(unsigned.signature_manifests.is_empty());
    let other = ask(&fake, Platform::new("plan9", "386"), &[PROVENANCE]).await.unwrap().unwrap();
    assert_eq!(digests(&other), [&other.root]);
    assert!(other.image_manifest.is_some() && other.attestation_manifest.is_none());
    let single = Fake::honest(&Image::new(1, &Platform::host(), &[10])).await;
    assert_eq!(ask(&single, Platform::host(), &[]).await.unwrap(), None);
}

#[tokio::test]
async fn documents_that_are_not_what_their_digests_say_are_no_documents() {
    let mut signed = Signed::new();
    signed.all.blobs.insert(signed.statements[0].clone(), b"who".to_vec());
    let fake = signed.serve(Listed::Nowhere).await;
    ask(&fake, Platform::host(), &[SPDX]).await.unwrap().unwrap();
    let error = ask(&fake, Platform::host(), &[PROVENANCE]).await.unwrap_err();
    assert!(matches!(error, SourceError::Registry { .. }), "{error:?}");
}
