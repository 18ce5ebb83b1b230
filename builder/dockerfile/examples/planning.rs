//! Times parsing and planning of Dockerfiles of 5,000 lines: one of many stages, and one of a single stage in which every line is an
//! instruction.
//!
//! ```text
//! cargo run --release -p lapstrake-builder-dockerfile --example planning [ROUNDS]
//! ```

use std::{error::Error, fmt::Write as _};

use lapstrake_builder_dockerfile::instructions::Dockerfile;
use lapstrake_builder_dockerfile::{Answer, DockerfileOptions, Facts, ImageFact, ImageQuery, Need, plan};
use lapstrake_layerstore_oci::{Digest, Platform};

const LINES: usize = 5_000;

/// What people write: stages that build on each other, flags, mounts, heredocs, comments, continued lines.
fn many_stages() -> String {
    let mut text = String::from("# check=skip=all\nARG VERSION=1.2.3\n");
    let mut stage = 0;
    while text.lines().count() + 47 + stage < LINES {
        let base = if stage % 4 == 0 { "debian:12".to_owned() } else { format!("stage{}", stage - 1) };
        let _ = write!(
            text,
            r#"
# stage{stage} is one of many
FROM {base} AS stage{stage}
ARG VERSION
ARG JOBS=4 MODE=${{VERSION:-none}}
ENV STAGE={stage} PATH=/opt/stage{stage}/bin:$PATH \
    NAME="stage ${{STAGE}} of many"
LABEL org.example.stage{stage}="${{NAME}}" \
      org.example.version=${{VERSION%.*}}
WORKDIR /src/stage{stage}
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,id=lib-{stage} \
    apt-get update && \
    # what everything needs
    apt-get install -y --no-install-recommends \
        build-essential \
        ca-certificates \
        curl \
        git \
        libssl-dev && \
    rm -rf /tmp/*
COPY --chown=1000:1000 --chmod=0755 src/{stage}/*.rs src/common ./
COPY --link --from=golang:1.{minor} /usr/local/go /usr/local/go
ADD --checksum=sha256:{sum} https://example.org/files/{stage}.tar.gz /opt/
RUN --mount=type=bind,source=tools,target=/tools --mount=type=secret,id=token,env=TOKEN \
    /tools/build --jobs=$JOBS --mode=${{MODE}} --out=/opt/stage{stage}
RUN <<EOF
set -e
for i in 1 2 3; do
    echo "$i of $NAME" >> /etc/stage
done
EOF
COPY <<"EOF" /etc/stage{stage}.conf
[stage]
number = {stage}
EOF
EXPOSE 80{minor:02}/tcp 90{minor:02}/udp
VOLUME ["/data/{stage}"]
USER 1000:1000
HEALTHCHECK --interval=30s --retries=3 CMD curl -f http://localhost/${{STAGE}} || exit 1
ENTRYPOINT ["/opt/stage{stage}/bin/run"]
CMD ["--stage", "{stage}"]
"#,
            minor = stage % 25,
            sum = "0".repeat(64),
        );
        stage += 1;
    }
    let _ = write!(text, "\nFROM scratch\n");
    for i in 0..stage {
        let _ = writeln!(text, "COPY --from=stage{i} /opt/stage{i} /opt/");
    }
    text
}

/// The same few instructions, over and over, on one image.
fn one_stage() -> String {
    let mut text = String::from("FROM debian:12\n");
    for i in 1..LINES {
        let _ = match i % 5 {
            0 => writeln!(text, "ENV V{}=${{V{}:+x}}{i}", i % 50, i % 35),
            1 => writeln!(text, "RUN echo ${{V{}}} > /out/{i}", i % 50),
            2 => writeln!(text, "COPY --chown=1:2 dir/{i} /dst/${{V5}}/"),
            3 => writeln!(text, "WORKDIR /work/{i}"),
            _ => writeln!(text, "LABEL l{}=\"$PATH {i}\"", i % 100),
        };
    }
    text
}

fn image(query: &ImageQuery) -> ImageFact {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        "1".repeat(64)
    );
    let digest = Some(Digest::sha256_of(query.reference.to_string()));
    let reference = query.reference.clone();
    ImageFact { reference, digest, config: config.into_bytes().into(), image_id: None }
}

/// Milliseconds of processor time that this thread has had: what else the machine does is not in it. It advances by ticks of some
/// milliseconds.
fn processor_time() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e6)
}

/// Prints what each of many rounds takes on average.
fn timed<T>(
    rounds: u32,
    what: &str,
    mut work: impl FnMut() -> Result<T, lapstrake_builder_dockerfile::Error>,
) -> Result<(), Box<dyn Error>> {
    let start = processor_time()?;
    for _ in 0..rounds {
        std::hint::black_box(work()?);
    }
    println!("{what:<56} {:>6.2} ms", (processor_time()? - start) / f64::from(rounds));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(100), |rounds| rounds.parse())?;
    println!("{:<56} {:>9}", "processor time", "mean");
    for (name, text) in [("many stages", many_stages()), ("one stage", one_stage())] {
        let lines = text.lines().count();
        let mut options = DockerfileOptions::new(Platform::new("linux", "amd64"));
        options.session_id = Some("s".to_owned());
        let mut facts = Facts::new(text.as_bytes());
        let bare = facts.clone();
        while let Answer::Need(needs) = plan(&options, &facts)? {
            for need in needs {
                let Need::ImageConfig { query, .. } = need else { return Err(format!("{need:?}").into()) };
                let fact = image(&query);
                facts.images.insert(query, fact);
            }
        }
        timed(rounds, &format!("{name}, {lines} lines: parse"), || Dockerfile::parse(text.as_bytes()))?;
        timed(rounds, &format!("{name}: parse, and say what images are needed"), || plan(&options, &bare))?;
        timed(rounds, &format!("{name}: parse and lower"), || plan(&options, &facts))?;
    }
    Ok(())
}
