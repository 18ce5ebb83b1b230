//! A frontend for tests: runs in an image, and calls the bridge on its standard input and output. What it does, option `test` says.

use std::{collections::BTreeMap, error::Error};

use lapstrake_api_proto::{
    gateway::{
        self, InputsRequest, PingRequest, ReadFileRequest, Ref, ReturnRequest, SolveRequest,
        llb_bridge_client::LlbBridgeClient, result::Result as Refs,
    },
    google::rpc,
    health::{HealthCheckRequest, health_client::HealthClient},
};
use lapstrake_integration_cli::buildkit::{BuildKit, Llb, OfBuild};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

type Stub = LlbBridgeClient<InterceptedService<Channel, OfBuild>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let code = run().await.unwrap_or_else(|error| {
        eprintln!("{error}");
        1
    });
    // Without waiting for the thread that reads standard input, which has no end before this has.
    std::process::exit(code);
}

async fn run() -> Result<i32, Box<dyn Error>> {
    let options: BTreeMap<String, String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, option)| {
            option.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect();
    let io = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let connection = BuildKit::over(io).await?;
    let mut bridge = connection.bridge("unused");
    bridge.ping(PingRequest {}).await?;
    let result = match options.get("test").map(String::as_str).unwrap_or_default() {
        "exit" => {
            eprintln!("something is wrong");
            return Ok(3);
        }
        "silent" => return Ok(0),
        "fail" => {
            let error = rpc::Status {
                code: 3,
                message: "the frontend does not like it".to_owned(),
                details: Vec::new(),
            };
            bridge.r#return(ReturnRequest { result: None, error: Some(error) }).await?;
            return Ok(1);
        }
        "nested" => nested(&mut bridge, options).await?,
        "endless" => {
            let again = SolveRequest {
                frontend: "gateway.v0".to_owned(),
                frontend_opt: options.into_iter().collect(),
                ..order()
            };
            let status = bridge.solve(again).await.err().ok_or("it came to an end well")?;
            let message = status.message().to_owned();
            let error = rpc::Status { code: status.code() as i32, message, details: Vec::new() };
            bridge.r#return(ReturnRequest { result: None, error: Some(error) }).await?;
            return Ok(1);
        }
        "network" => {
            let interfaces = std::fs::read_to_string("/proc/net/dev")?;
            let count = interfaces.lines().skip(2).count().to_string();
            gateway::Result {
                metadata: [("frontend.interfaces".to_owned(), count.into_bytes())].into(),
                ..Default::default()
            }
        }
        "health" => {
            let request = HealthCheckRequest { service: String::new() };
            let health = HealthClient::new(connection.channel()).check(request).await?.into_inner();
            let status = health.status().as_str_name().as_bytes().to_vec();
            gateway::Result {
                metadata: [("frontend.health".to_owned(), status)].into(),
                ..Default::default()
            }
        }
        _ => image(&mut bridge, &options).await?,
    };
    bridge.r#return(ReturnRequest { result: Some(result), error: None }).await?;
    Ok(0)
}

fn order() -> SolveRequest {
    SolveRequest { allow_result_return: true, allow_result_array_ref: true, ..SolveRequest::default() }
}

/// An image of what the frontend was told.
async fn image(
    bridge: &mut Stub,
    options: &BTreeMap<String, String>,
) -> Result<gateway::Result, Box<dyn Error>> {
    let mut said: String = options.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    for name in ["BUILDKIT_SESSION_ID", "BUILDKIT_WORKERS", "BUILDKIT_EXPORTEDPRODUCT", "OF_IMAGE"] {
        said.push_str(&format!("{name}={}\n", std::env::var(name)?));
    }
    said.push_str(&format!("cwd={}\n", std::env::current_dir()?.display()));
    let metadata = std::fs::metadata("/run/config/buildkit/metadata/frontend.bin")?;
    said.push_str(&format!("metadata={}\n", metadata.len() > 0));
    let mut graph = Llb::default();
    let base = graph.source("docker-image://docker.io/library/busybox:latest");
    let told = graph.file(Some(&base), "/told", said.as_bytes());
    let ran = graph.run(&told, "cp /told /copy");
    let solved =
        bridge.solve(SolveRequest { definition: Some(graph.result(&ran)), ..order() }).await?.into_inner();
    let result = solved.result.ok_or("no result")?;
    let Some(Refs::Ref(Ref { id, .. })) = &result.result else { return Err("no ref".into()) };
    let read =
        ReadFileRequest { r#ref: id.clone(), file_path: "/copy".to_owned(), ..ReadFileRequest::default() };
    if bridge.read_file(read).await?.into_inner().data != said.as_bytes() {
        return Err("another file came back".into());
    }
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Labels":{"made":"by frontend"}}}"#;
    let metadata = [("containerimage.config".to_owned(), config.to_vec())].into();
    Ok(gateway::Result { metadata, ..result })
}

/// What the built-in frontend makes of the inputs.
async fn nested(
    bridge: &mut Stub,
    mut options: BTreeMap<String, String>,
) -> Result<gateway::Result, Box<dyn Error>> {
    let inputs = bridge.inputs(InputsRequest {}).await?.into_inner().definitions;
    options.retain(|key, _| key.starts_with("build-arg:") && key != "build-arg:BUILDKIT_SYNTAX");
    let nested = SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_opt: options.into_iter().collect(),
        frontend_inputs: inputs,
        ..order()
    };
    Ok(bridge.solve(nested).await?.into_inner().result.ok_or("no result")?)
}
