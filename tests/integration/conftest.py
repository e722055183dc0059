"""Servers of the tests' own on loopback: one that speaks S3, and as much of the Hugging Face Hub as its client asks;
whether a test may mount a file system of its own; a run with a damaged sample."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SECRET = "s3cr3t-not-to-be-written"


@pytest.fixture(scope="session")
def secret() -> str:
    """The key and the token by which the servers are spoken to."""
    return SECRET


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a real S3-compatible server on loopback, spoken to by the real s3fs."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        patch.setenv(name, value)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="datasets")
    fsspec.config.conf.setdefault("s3", {})["endpoint_url"] = endpoint
    try:
        yield "s3://datasets"
    finally:
        fsspec.config.conf.pop("s3", None)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
        patch.undo()


def places(text: str, character: str) -> list[int]:
    """Where a character stands."""
    return [number for number, each in enumerate(text) if each == character]


class Hub:
    """As much of the Hub's interface as its client needs to make a repository, list, upload, commit, tag and read."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str], list[str]]] = []
        self.tags: list[str] = []
        self.tagged: dict[str, dict[str, bytes]] = {}
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        self.fail_next, self.fail_with = 0, 503
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if "Transfer-Encoding" in self.headers:
                    body = self.chunks()
                hub.tokens.add(self.headers.get("Authorization", ""))
                if "/resolve/" in self.path:
                    self.send_file()
                    return
                status, value = hub.respond(self.command, self.path, body, f"http://{self.headers['Host']}")
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status == 404:
                    self.send_header("X-Error-Code", value["code"])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def send_file(self) -> None:
                revision, name = unquote(urlsplit(self.path).path).split("/resolve/", 1)[1].split("/", 1)
                data = hub.at(revision).get(name)
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                asked, whole = self.headers.get("Range"), len(data)
                self.send_response(200 if asked is None else 206)
                if asked is not None:
                    hub.ranges.append(asked)
                    first, last = asked.removeprefix("bytes=").split("-")
                    data = data[int(first) : int(last) + 1 if last else None]
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{whole}")
                self.send_header("ETag", hub.entry(name, revision)["oid"])
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def chunks(self) -> bytes:
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, method: str, path: str, body: bytes, host: str) -> tuple[int, Any]:
        self.asked.append((method, path))
        if self.fail_next and "/commit/" in path:
            self.fail_next -= 1
            return self.fail_with, {"error": "slow down", "code": "Fault"}
        if path == "/api/repos/create":
            return 200, {"url": f"{host}/datasets/team/drawn", "id": "team/drawn"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/tree/" in path:
            return self.tree(path)
        if "/paths-info/" in path:
            form = parse_qs(body.decode())
            asked = json.loads(body)["paths"] if body.startswith(b"{") else form["paths"]
            revision = path.rsplit("/", 1)[1]
            return 200, [self.entry(name, revision) for name in asked if name in self.at(revision)]
        if re.fullmatch(r"/api/datasets/[^/]+/[^/]+(/revision/[^/]+)?", urlsplit(path).path):
            return self.repository(urlsplit(path).path)
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {"files": [self.mode(each["path"]) for each in asked]}
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            actions = {"upload": {"href": ""}}
            objects = []
            for each in asked:
                known = each["oid"] in self.objects
                actions = {"upload": {"href": f"{host}/objects/{each['oid']}", "header": {}}}
                objects.append({**each, "authenticated": True, **({} if known else {"actions": actions})})
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/objects/"):
            self.objects[path.rsplit("/", 1)[1]] = body
            return 200, {}
        if "/commit/" in path:
            return 200, self.commit([json.loads(line) for line in body.splitlines()], host)
        if "/tag/" in path:
            self.tags.append(json.loads(body)["tag"])
            self.tagged[self.tags[-1]] = dict(self.files)
            return 200, {}
        return 404, {"error": f"{method} {path}", "code": "EntryNotFound"}

    def at(self, revision: str) -> dict[str, bytes]:
        """The files of a branch or tag."""
        return self.files if revision == "main" else self.tagged.get(revision, {})

    def repository(self, path: str) -> tuple[int, Any]:
        name, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
        if name != "team/drawn":
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if revision not in ("", "main", *self.tagged):
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        return 200, {"id": name, "sha": "0" * 40, "private": True, "tags": [], "siblings": []}

    def tree(self, path: str) -> tuple[int, Any]:
        """Files and folders under a folder, or directly in it."""
        parts = urlsplit(path)
        revision, _, folder = unquote(parts.path).split("/tree/", 1)[1].partition("/")
        prefix = f"{folder}/" if folder else ""
        names = sorted(name for name in self.at(revision) if name.startswith(prefix))
        if folder and not names:
            return 404, {"error": "no such folder", "code": "EntryNotFound"}
        inner = {name[:prefix_end] for name in names for prefix_end in places(name, "/") if prefix_end > len(prefix)}
        found = [self.entry(name, revision) for name in names]
        found += [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(inner)]
        if parse_qs(parts.query).get("recursive", ["false"])[0].lower() != "true":
            found = [each for each in found if "/" not in each["path"].removeprefix(prefix)]
        return 200, found

    def mode(self, name: str) -> dict[str, Any]:
        large = name.endswith((".tar", ".parquet", ".jpg"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

    def entry(self, name: str, revision: str = "main") -> dict[str, Any]:
        data = self.at(revision)[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if self.mode(name)["uploadMode"] == "lfs":
            sha256 = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return found

    def commit(self, lines: list[dict[str, Any]], host: str) -> dict[str, Any]:
        added, deleted = [], []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            else:
                del self.files[value["path"]]
                deleted.append(value["path"])
                continue
            added.append(value["path"])
        self.commits.append((lines[0]["value"]["summary"], added, deleted))
        return {"commitUrl": f"{host}/datasets/team/drawn/commit/{0:040}", "commitOid": "0" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)  # for processes that are started
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="module")
def own_mounts() -> None:
    """Skips where a process may not mount a file system of its own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no mounts of one's own here (unshare -rm)")


@pytest.fixture(scope="module")
def damaged_run(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A copy with one byte of one sample's masks changed; also its key and shard."""
    from model.data.shards import ShardIndex

    directory = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(drawn_run, directory)
    row = ShardIndex.open(directory).row(3)
    data = bytearray((directory / row["shard"]).read_bytes())
    data[row["json_offset"] + row["json_size"] // 2] ^= 0x55
    (directory / row["shard"]).write_bytes(bytes(data))
    return directory, row["key"], row["shard"]
