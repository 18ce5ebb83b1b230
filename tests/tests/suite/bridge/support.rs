//! Builds whose frontend is the test.

use std::collections::BTreeMap;

use lapstrake_api_proto::{
    gateway::{
        self, Ref, RefMap, ReturnRequest, SolveRequest, llb_bridge_client::LlbBridgeClient,
        result::Result as Refs,
    },
    llb as pb,
};
use lapstrake_builder_engine::{
    BuildId, BuildRequest, EngineError, Exported, FrontendRequest, Input, Output, bridges_service,
};
use lapstrake_builder_progress::{Event, Progress, from_response};
use lapstrake_integration_cli::buildkit::{BuildKit, Llb, OfBuild};
use lapstrake_layerstore_oci::Reference;
use lapstrake_tests::{Context, Workbench};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Server},
};

pub(crate) type Stub = LlbBridgeClient<InterceptedService<Channel, OfBuild>>;

/// A build that waits for what its client makes of it.
pub(crate) struct Asked {
    pub(crate) bridge: Stub,
    build: JoinHandle<(Vec<Event>, Result<Exported, EngineError>)>,
}

impl Asked {
    /// How the build ends.
    pub(crate) async fn end(self) -> Result<Exported, EngineError> {
        self.build.await.unwrap().1
    }

    /// The same, with what it said.
    pub(crate) async fn told(self) -> Vec<Event> {
        self.build.await.unwrap().0
    }

    /// Gives one result, without a config, as the answer.
    pub(crate) async fn give(&mut self, id: &str) {
        let reference = Ref { id: id.to_owned(), def: None };
        let result = gateway::Result { result: Some(Refs::Ref(reference)), ..Default::default() };
        self.bridge.r#return(ReturnRequest { result: Some(result), error: None }).await.unwrap();
    }

    /// Gives an empty answer.
    pub(crate) async fn give_nothing(&mut self) {
        let result = Some(gateway::Result::default());
        self.bridge.r#return(ReturnRequest { result, error: None }).await.unwrap();
    }

    /// A graph's result, by name.
    pub(crate) async fn solve(&mut self, definition: pb::Definition) -> String {
        let request = SolveRequest {
            definition: Some(definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let answer = self.bridge.solve(request).await.unwrap().into_inner();
        one(answer.result.unwrap().result.unwrap())
    }
}

/// The one result that there is.
pub(crate) fn one(refs: Refs) -> String {
    match refs {
        Refs::Ref(reference) => reference.id,
        other => panic!("{other:?}"),
    }
}

/// Several results.
pub(crate) fn several(refs: Refs) -> BTreeMap<String, String> {
    match refs {
        Refs::Refs(RefMap { refs }) => refs.into_iter().map(|(key, wire)| (key, wire.id)).collect(),
        other => panic!("{other:?}"),
    }
}

/// A request whose input is this, and that leaves an image behind.
pub(crate) async fn request(bench: &Workbench, input: Input, name: &str) -> BuildRequest {
    let mut request = bench.request(Context::new(""), name).await.unwrap();
    request.input = input;
    request
}

pub(crate) fn client_input() -> Input {
    Input::Client { options: BTreeMap::new(), inputs: BTreeMap::new() }
}

/// A request to a frontend.
pub(crate) fn frontend(name: &str, options: &[(&str, &str)]) -> Input {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Input::Frontend(FrontendRequest { frontend: name.to_owned(), options, inputs: BTreeMap::new() })
}

/// Begins a build whose frontend is the test, and leaves nothing behind.
pub(crate) async fn ask(bench: &Workbench) -> Asked {
    let mut request = request(bench, client_input(), "unused").await;
    request.outputs = Vec::new();
    begin(bench, request).await
}

/// The same, with an image.
pub(crate) async fn ask_for_image(bench: &Workbench, name: &str) -> Asked {
    let mut request = request(bench, client_input(), name).await;
    request.outputs = vec![Output::image(vec![Reference::parse(name).unwrap().with_default_tag()])];
    begin(bench, request).await
}

pub(crate) async fn begin(bench: &Workbench, request: BuildRequest) -> Asked {
    let id = request.id.clone();
    let engine = bench.engine.clone();
    let build = tokio::spawn(async move {
        let progress = Progress::anonymous(Default::default()).unwrap();
        let mut subscription = progress.subscribe();
        let result = engine.build(request, progress, None, CancellationToken::new()).await;
        let mut events = Vec::new();
        while let Some(response) = subscription.next().await.unwrap() {
            events.extend(from_response(response));
        }
        (events, result)
    });
    Asked { bridge: stub(bench, &id).await, build }
}

/// The bridge of a build, over a stream.
pub(crate) async fn stub(bench: &Workbench, id: &BuildId) -> Stub {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let service = bridges_service(bench.engine.clone());
    tokio::spawn(async move {
        let one = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(theirs)));
        let all = futures::StreamExt::chain(one, futures::stream::pending());
        Server::builder().add_service(service).serve_with_incoming(all).await
    });
    BuildKit::over(ours).await.unwrap().bridge(&id.0)
}

/// A graph that runs a command in busybox.
pub(crate) fn run(command: &str) -> pb::Definition {
    let mut graph = Llb::default();
    let image = graph.source("docker-image://docker.io/library/busybox:latest");
    let step = graph.run(&image, command);
    graph.result(&step)
}

/// A graph that is the image busybox.
pub(crate) fn busybox() -> pb::Definition {
    let mut graph = Llb::default();
    let image = graph.source("docker-image://docker.io/library/busybox:latest");
    graph.result(&image)
}
