"""What docker-py makes of the daemon at DOCKER_HOST. Run with the name of one function below; `busybox` is there.

Assertions are the test; the Rust side (tests/docker_py.rs) only starts the daemon and this script.
"""

import gzip
import io
import os
import sys
import tarfile
import tempfile
import threading

import docker
from docker.errors import APIError, BuildError, ImageNotFound, NotFound


def context(files, mode="w"):
    """A tar archive with these files, as a file object."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data.encode()))
    buffer.seek(0)
    return buffer


def directory(files):
    """A directory with these files."""
    path = tempfile.mkdtemp(dir=os.environ["SCRATCH"])
    for name, data in files.items():
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            file.write(data)
    return path


def text(logs):
    return "".join(line.get("stream", "") for line in logs)


def layers(image):
    return image.attrs["RootFS"]["Layers"]


def path_and_dockerfile(client):
    path = directory({
        "Dockerfile": "FROM busybox\nCOPY a /a\nRUN cat /a && test ! -e /skipped\nCOPY . /all\nRUN test ! -e /all/skipped\n",
        "other/Second": "FROM busybox\nCOPY a /second\n",
        "a": "hello from a\n",
        "skipped": "x",
        ".dockerignore": "skipped\n",
    })
    image, logs = client.images.build(path=path, tag="path:1")
    logs = list(logs)
    assert image.tags == ["path:1"], image.tags
    assert "hello from a\n" in text(logs), logs
    assert "Step 1/5 : FROM busybox" in text(logs), logs
    assert f"Successfully built {image.short_id.removeprefix('sha256:')}" in text(logs), logs
    assert "Successfully tagged path:1\n" in text(logs), logs
    assert {"aux": {"ID": image.id}} in logs, logs
    image, _ = client.images.build(path=path, dockerfile="other/Second")
    assert len(layers(image)) == 2
    # A Dockerfile outside of the context goes with it under another name.
    outside = os.path.join(directory({"Third": "FROM busybox\nCOPY a other/Second /third/\n"}), "Third")
    image, _ = client.images.build(path=path, dockerfile=outside, gzip=True)
    assert len(layers(image)) == 2


def file_objects(client):
    image, logs = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo alone\n"), tag="alone")
    assert "alone\n" in text(logs)
    files = {"Dockerfile": "FROM busybox\nCOPY a /a\n", "sub/Dockerfile": "FROM busybox\nCOPY sub /s\nRUN cat /s/b\n", "a": "A", "sub/b": "B"}
    image, _ = client.images.build(fileobj=context(files), custom_context=True)
    assert len(layers(image)) == 2
    image, logs = client.images.build(fileobj=context(files, "w:gz"), custom_context=True, encoding="gzip", dockerfile="sub/Dockerfile")
    assert "B" in text(logs)
    for mode, encoding in [("w:bz2", "bzip2"), ("w:xz", "xz")]:
        client.images.build(fileobj=context(files, mode), custom_context=True, encoding=encoding, nocache=True)


def arguments(client):
    def build(dockerfile, **more):
        image, logs = client.images.build(fileobj=io.BytesIO(dockerfile.encode()), **more)
        return image, text(logs)

    dockerfile = "FROM busybox AS first\nARG WHO=nobody\nRUN echo \"I am $WHO\" | tee /who\nFROM first AS second\nRUN echo two > /two\n"
    image, out = build(dockerfile, buildargs={"WHO": "me"}, labels={"l": "v", "empty": ""}, target="first")
    assert "I am me\n" in out, out
    assert image.labels == {"l": "v", "empty": ""}, image.labels
    assert len(layers(image)) == 2
    _, out = build(dockerfile, buildargs={"WHO": "me"})
    assert "Using cache" in out, out
    _, out = build(dockerfile, buildargs={"WHO": "me"}, nocache=True)
    assert "Using cache" not in out, out
    _, out = build(dockerfile, rm=True, forcerm=True, pull=False, timeout=120, cache_from=["nothing:here"])
    _, out = build("FROM busybox\nRUN df -k /dev/shm | tail -1\n", shmsize=32 * 1024 * 1024, nocache=True)
    assert "32768" in out, out
    _, out = build("FROM busybox\nRUN cat /etc/hosts\n", extra_hosts={"some.test": "10.11.12.13"}, nocache=True)
    assert "10.11.12.13\tsome.test" in out, out
    _, out = build("FROM busybox\nRUN ls /sys/class/net\n", network_mode="none", nocache=True)
    assert "\nlo\n" in out and "eth0" not in out, out
    _, out = build("FROM busybox\nRUN ls /sys/class/net\n", network_mode="host", nocache=True)
    image, _ = build("FROM busybox\n", platform="linux/amd64")
    assert image.attrs["Architecture"] == "amd64"
    build("FROM busybox\nRUN true\n", container_limits={"memory": 256 << 20, "memswap": -1, "cpushares": 512, "cpusetcpus": "0"}, nocache=True)
    build("FROM busybox\n", isolation="default")
    build("FROM busybox\n", use_config_proxy=True)
    # The low-level client with q: nothing but the id.
    raw = list(client.api.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo q\n"), quiet=True, decode=True))
    assert len(raw) == 1 and raw[0]["stream"].startswith("sha256:") and len(raw[0]["stream"]) == 72, raw
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo q\n"), quiet=True)
    assert image.id == raw[0]["stream"].strip()


def refusals(client):
    dockerfile = b"FROM busybox\n"
    for more, words in [
        ({"squash": True}, "squash"),
        ({"isolation": "hyperv"}, "isolation"),
        ({"platform": "nonsense/x/y/z"}, "platform"),
        ({"tag": "UPPER/x"}, "invalid"),
        ({"network_mode": "container:x"}, "network"),
    ]:
        try:
            client.images.build(fileobj=io.BytesIO(dockerfile), **more)
        except (APIError, BuildError, docker.errors.DockerException) as error:
            assert words in str(error).lower(), (more, error)
        else:
            raise AssertionError(f"{more} was accepted")
    assert client.ping()


def config_proxy(client):
    with open(os.path.join(os.environ["DOCKER_CONFIG"], "config.json"), "w") as file:
        file.write('{"proxies":{"default":{"httpProxy":"http://proxy.test:1"}}}')
    client = docker.from_env()
    dockerfile = b"FROM busybox\nRUN echo \"proxy=$HTTP_PROXY\"\n"
    _, logs = client.images.build(fileobj=io.BytesIO(dockerfile), use_config_proxy=True, nocache=True)
    assert "proxy=http://proxy.test:1\n" in text(logs)
    image, logs = client.images.build(fileobj=io.BytesIO(dockerfile), use_config_proxy=False, nocache=True)
    assert "proxy=\n" in text(logs)
    assert not any("PROXY" in variable for variable in image.attrs["Config"]["Env"])


def failures(client):
    try:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo before && exit 7\n"))
    except BuildError as error:
        assert "returned a non-zero code: 7" in error.msg, error.msg
        log = list(error.build_log)
        assert "before\n" in text(log), log
        assert log[-1]["errorDetail"]["code"] == 7, log[-1]
    else:
        raise AssertionError("a failing RUN was accepted")
    try:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nNONSENSE x\n"))
    except (APIError, BuildError) as error:
        assert "unknown instruction: NONSENSE" in str(error), error
        assert "line 2" in str(error), error
    else:
        raise AssertionError("an unknown instruction was accepted")
    try:
        client.images.build(fileobj=context({"a": "x"}), custom_context=True)
    except (APIError, BuildError) as error:
        assert "Dockerfile" in str(error), error
    else:
        raise AssertionError("a context without Dockerfile was accepted")


def images(client):
    client.images.build(fileobj=io.BytesIO(b"FROM busybox\nLABEL k=v\nRUN echo 1 > /1\n"), tag="app:1")
    assert {tag for image in client.images.list() for tag in image.tags} == {"busybox:latest", "app:1"}
    assert [image.tags for image in client.images.list(name="app")] == [["app:1"]]
    assert [image.tags for image in client.images.list(filters={"label": "k=v"})] == [["app:1"]]
    image = client.images.get("app:1")
    assert image.tag("other.test/app", tag="2")
    assert sorted(client.images.get(image.id).tags) == ["app:1", "other.test/app:2"]
    assert image.history()[0]["CreatedBy"] == "/bin/sh -c echo 1 > /1", image.history()
    data = b"".join(image.save(named="app:1"))
    client.images.remove("other.test/app:2")
    client.images.remove("app:1")
    try:
        client.images.get("app:1")
    except ImageNotFound as error:
        assert "No such image: app:1" in str(error), error
    else:
        raise AssertionError("a removed image is there")
    [loaded] = client.images.load(data)
    assert (loaded.id, loaded.tags) == (image.id, ["app:1"]), loaded
    client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo untagged > /1\n"))
    pruned = client.images.prune(filters={"dangling": True})
    assert any("Deleted" in entry for entry in pruned["ImagesDeleted"]), pruned
    assert client.containers.list(all=True) == []
    assert client.volumes.list() == [] and client.networks.list() == []
    try:
        client.containers.get("nobody")
    except NotFound as error:
        assert "No such container: nobody" in str(error), error


def system(client):
    assert client.ping() is True
    version = client.version()
    assert version["Os"] == "linux" and version["ApiVersion"], version
    assert client.info()["Images"] == 1, client.info()
    client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN head -c 3000000 /dev/urandom > /big\n"), tag="big")
    usage = client.df()
    assert any("big:latest" in (image["RepoTags"] or []) for image in usage["Images"]), usage
    assert usage["LayersSize"] > 3000000, usage
    assert usage["Containers"] == [] and usage["Volumes"] == [], usage
    client.images.remove("big")
    report = client.api.prune_builds(all=True)
    assert report["SpaceReclaimed"] > 3000000, report
    assert client.api.prune_builds(filters={"until": "1h"}, keep_storage=0)["SpaceReclaimed"] == 0
    assert not client.df()["BuildCache"], client.df()


def events(client):
    stream = client.events(decode=True, filters={"type": "image"})
    seen, enough = [], threading.Event()

    def listen():
        for event in stream:
            seen.append(event)
            if event["Action"] == "delete":
                enough.set()
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo events\n"), tag="events:1")
    client.images.remove("events:1")
    assert enough.wait(60), seen
    stream.close()
    names = [(event["Action"], event["Actor"]["ID"]) for event in seen]
    for action in ["tag", "untag", "delete"]:
        assert any(name[0] == action for name in names), names
    assert ("delete", image.id) in names, names
    # And the past, without a stream.
    until = seen[-1]["time"] + 1
    past = list(client.events(decode=True, since=0, until=until, filters={"event": "delete"}))
    assert [event["Actor"]["ID"] for event in past] == [image.id], past


if __name__ == "__main__":
    globals()[sys.argv[1]](docker.from_env(version="auto", timeout=300))
