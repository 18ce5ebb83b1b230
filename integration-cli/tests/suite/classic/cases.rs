//! Dockerfiles that both engines build, or fail to.

/// A build, and how its command line goes on.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) dockerfile: &'static str,
    pub(crate) arguments: &'static [&'static str],
}

pub(crate) const fn case(name: &'static str, dockerfile: &'static str) -> Case {
    Case { name, dockerfile, arguments: &[] }
}

pub(crate) const fn case_with(
    name: &'static str,
    dockerfile: &'static str,
    arguments: &'static [&'static str],
) -> Case {
    Case { name, dockerfile, arguments }
}

/// Builds that go well. One after the other in the same daemons: what an earlier one made, a later one finds.
pub(crate) const GOOD: &[Case] = &[
    case("one-instruction", "FROM busybox\nCMD [\"x\", \"y\\\"z\"]\n"),
    case(
        "every-metadata",
        r#"FROM busybox
MAINTAINER somebody
LABEL a=b "c d"="e f"
ENV P=1 Q="two words"
ENV R $P:3
EXPOSE 80 53/udp
HEALTHCHECK --interval=5s --retries=2 CMD true
SHELL ["/bin/sh","-ec"]
ONBUILD RUN echo later
VOLUME /data /more
USER app
STOPSIGNAL SIGINT
CMD echo x
ENTRYPOINT ["a","b"]
"#,
    ),
    case("no-healthcheck", "FROM busybox\nHEALTHCHECK NONE\nENTRYPOINT in a shell\n"),
    case(
        "copies",
        r#"FROM busybox
WORKDIR /w
COPY a.txt ./
COPY src /dir
COPY a.txt src/b /many/
COPY src/* /wild/
COPY --chown=1000:1000 a.txt /c
ADD a.txt /added
ADD special.tar /unpacked/
COPY ./src/deep/ /deep
COPY . /all
"#,
    ),
    case(
        "runs",
        "FROM busybox\nRUN echo out && echo x > /x\nRUN echo err >&2; echo y > /err\nRUN [\"/bin/sh\", \"-c\", \"echo exec > /y\"]\nENV LATE=1\nRUN echo $LATE | tee /z\n",
    ),
    case_with(
        "arguments",
        "ARG TAG=latest\nFROM busybox:$TAG\nARG WHO=nobody\nARG NONE\nARG SET=default\nRUN echo $WHO $SET > /who\nENV SET=env\nRUN echo $SET > /set\n",
        &["--build-arg", "WHO=me", "--build-arg", "UNUSED=1", "--build-arg", "no_proxy=here"],
    ),
    case_with("proxies", "FROM busybox\nRUN echo $no_proxy > /p\n", &["--build-arg", "no_proxy=here"]),
    case(
        "stages",
        r#"FROM busybox AS make
ARG X=1
RUN echo made $X > /out
FROM make AS more
RUN echo more$X >> /out
FROM busybox AS unused
RUN echo nobody needs this > /nothing
FROM busybox
COPY --from=make /out /first
COPY --from=more /out /second
COPY --from=0 /out /third
CMD ["/bin/true"]
"#,
    ),
    case_with(
        "target",
        "FROM busybox AS one\nRUN echo 1 > /1\nFROM busybox\nRUN false\n",
        &["--target", "one"],
    ),
    case("from-scratch", "FROM scratch\nCOPY a.txt /\nENV A=1\n"),
    case_with(
        "labels",
        "FROM busybox\nENV A=$B\n",
        &["--label", "z=y", "--label", "k=v w", "--label", "d=$HOME"],
    ),
    case_with(
        "trigger-base",
        "FROM busybox\nONBUILD RUN echo trig > /trig\nONBUILD COPY a.txt /t\n",
        &["-t", "trig"],
    ),
    case("triggered", "FROM trig\nRUN echo own > /own\n"),
    case_with("kept-containers", "FROM busybox\nRUN echo kept > /k\nENV K=1\n", &["--rm=false"]),
    case_with("quiet", "FROM busybox\nENV QUIET=1\n", &["-q"]),
    case(
        "nothing-changes",
        r#"FROM busybox AS idle
RUN true
RUN cat /etc/hosts > /proc/self/oom_score_adj; true
FROM idle
WORKDIR /
WORKDIR /etc
RUN touch /etc/x && rm /etc/x
RUN echo a > /a
RUN true
COPY a.txt /
RUN chmod 700 /root
RUN cat /etc/resolv.conf /etc/hosts > /tmp/y && rm /tmp/y
WORKDIR /new
RUN ls /dev /proc /sys > /tmp/z && true
"#,
    ),
    case("nothing-on-nothing", "FROM scratch\nWORKDIR /\nCOPY a.txt /alone\n"),
    case_with(
        "no-cache",
        "FROM busybox AS a\nRUN echo ran && echo x > /t\nFROM busybox\nRUN true\nCOPY --from=a /t /t\nRUN true\n",
        &["--no-cache"],
    ),
    case("continued", "# a comment\nFROM busybox\nRUN echo a \\\n  # inside\n  b > /c\nlabel lower=1\n"),
];

/// Builds that fail, each after something that went well.
pub(crate) const BAD: &[Case] = &[
    case("no-file", "FROM busybox\nRUN echo hi\nCOPY nosuch /x\n"),
    case("no-match", "FROM busybox\nENV A=1\nCOPY nosuch* /x\n"),
    case("many-to-one", "FROM busybox\nCOPY a.txt src/b /x\n"),
    case("wild-to-one", "FROM busybox\nCOPY src/* /x\n"),
    case("outside", "FROM busybox\nCOPY ../x /x\n"),
    case("failing-run", "FROM busybox\nENV A=1\nRUN echo out; exit 3\nCMD x\n"),
    case_with("failing-run-removed", "FROM busybox\nRUN echo hi; false\n", &["--force-rm"]),
    case("not-found", "FROM busybox\nRUN nosuchcommand\n"),
    case("no-file-in-stage", "FROM busybox AS a\nRUN echo a > /a\nFROM busybox\nCOPY --from=a /nosuch /x\n"),
    case("nothing", "FROM scratch\n"),
    case_with("no-target", "FROM busybox\nCMD x\n", &["--target", "nosuch"]),
    case("unused-stage-fails", "FROM busybox AS a\nRUN exit 7\nFROM busybox\nCMD x\n"),
    case("unknown-image", "FROM REGISTRY/nosuch:1\nRUN true\n"),
    case("unknown-second-image", "FROM busybox\nRUN true\nFROM REGISTRY/nosuch\n"),
    case("copy-from-unknown-image", "FROM busybox\nCOPY --from=REGISTRY/nosuch:1 /a /b\n"),
    case("copy-from-no-such-stage", "FROM busybox\nCOPY --from=7 /a /b\n"),
    case("copy-from-its-own-stage", "FROM busybox\nCOPY --from=0 /a /b\n"),
    case("unknown-owner", "FROM busybox\nENV A=1\nCOPY --chown=nobodyhere a.txt /x\n"),
    case("unknown-group", "FROM busybox\nCOPY --chown=app:nogrouphere a.txt /x\n"),
    case("owner-without-group", "FROM busybox\nRUN sed -i /app/d /etc/group\nCOPY --chown=app a.txt /x\n"),
    case("three-owners", "FROM busybox\nCOPY --chown=a:b:c a.txt /x\n"),
    case("empty-base", "ARG E\nFROM $E\n"),
    case("bad-platform", "FROM --platform=a/b/c/d busybox\n"),
    case("unknown-user", "FROM busybox\nUSER nobodyhere\nRUN true\n"),
    case("no-json", "FROM busybox\nCOPY [\"a.txt\" \"/x\"]\n"),
    case("no-stage", "RUN true\n"),
    case("empty", ""),
    case("comments-alone", "# nothing\n\n"),
    case("bad-escape", "# escape=x\nFROM busybox\n"),
    case("env-of-one", "FROM busybox\nENV A\n"),
];

/// Failures that today's Moby (28) tells in other words than 20.10, which are ours: the Dockerfile, 20.10's words, and ours.
pub(crate) const REWORDED: &[(Case, &str, &str)] = &[
    (
        case("unknown-instruction", "FROM busybox\nFOO bar\n"),
        "parse error line 2: unknown instruction: FOO",
        "parse error on line 2: unknown instruction: FOO (did you mean FROM?)",
    ),
    (
        case("unknown-flag", "FROM busybox\nRUN --foo=1 true\n"),
        "parse error line 2: Unknown flag: foo",
        "parse error on line 2: unknown flag: --foo",
    ),
    (case("copy-of-one", "FROM busybox\nCOPY a.txt\n"), "parse error line 2", "parse error on line 2"),
    (case("from-two", "FROM busybox x\n"), "parse error line 1", "parse error on line 1"),
    (case("port", "FROM busybox\nEXPOSE abc\n"), "Invalid containerPort", "invalid containerPort"),
    (case("signal", "FROM busybox\nSTOPSIGNAL NOPE\n"), "Invalid signal", "invalid signal"),
    (
        case("capitals", "FROM Bad:Ref\n"),
        "repository name must be lowercase",
        "repository name (library/Bad) must be lowercase",
    ),
    (
        case("capitals-copied", "FROM busybox\nCOPY --from=Bad:Ref /a /b\n"),
        "repository name must be lowercase",
        "repository name (library/Bad) must be lowercase",
    ),
    // What Go says of connections, and Rust.
    (
        case("refused", "FROM localhost:1/nosuch:1\n"),
        "Get \"http://localhost:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
        "localhost:1: manifest for localhost:1/nosuch:1: cannot connect: Connection refused (os error 111)",
    ),
    (
        case("refused-copy", "FROM busybox\nCOPY --from=localhost:1/nosuch:1 /a /b\n"),
        "Get \"http://localhost:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
        "localhost:1: manifest for localhost:1/nosuch:1: cannot connect: Connection refused (os error 111)",
    ),
    (
        case("no-download", "FROM busybox\nADD http://REGISTRY/x /x\n"),
        "failed to GET http://REGISTRY/x with status 404 Not Found: 404 page not found",
        "invalid response status 404 for http://REGISTRY/x",
    ),
    (
        case("no-shell", "FROM scratch\nRUN true\n"),
        "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: \
         exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown",
        "exec: \"/bin/sh\": no such file or directory",
    ),
    // It works here, as everything else that Moby says this of; not every mode does.
    (
        case("mode", "FROM busybox\nCOPY --chmod=999 a.txt /x\n"),
        "the --chmod option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images \
         with BuildKit enabled",
        "invalid chmod parameter: '999'. it should be octal string and between 0 and 07777",
    ),
];
