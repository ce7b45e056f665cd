"""Local HTTP stand-in for the Hugging Face hub: the endpoints that downloads and pushes of ``huggingface_hub`` call."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = ".safetensors"  # files that the hub keeps by git-lfs


@dataclass
class Repository:
    """A repository of the stand-in, with the faults that it shows."""

    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = "a" * 40
    private: bool = False
    gated: bool = False
    licence: str = "bsd-3-clause"
    altered: set[str] = field(default_factory=set)  # files that arrive with another byte
    cut: set[str] = field(default_factory=set)  # files whose connection ends halfway
    states_hashes: bool = True  # some mirrors do not


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)


class HubStandIn(ThreadingHTTPServer):
    """The stand-in. `calls` has method and path of every request, also of those that came through it as a proxy."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> content that was uploaded
        self.ignores_visibility = False  # as a hub of another version may
        self.calls: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, name: str, folder: Path, **facts: Any) -> Repository:
        """Return a new repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.repositories[name] = Repository(files, **facts)
        return self.repositories[name]


@contextmanager
def serve_hub() -> Iterator[HubStandIn]:
    server = HubStandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``huggingface_hub`` call a stand-in; its constants were read as it was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def _reply(self, content: bytes | Any = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code: str, status: int = 404) -> None:
        self._reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)  # of a proxy call it has the host too
        path = unquote(parts.path)
        self.server.calls.append((self.command, path))
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(info[1], info[2] or "main")
        elif tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(*tree.groups())
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*file.groups())
        elif path == "/api/whoami-v2":
            self._reply({"name": "owner", "type": "user", "orgs": []})
        else:
            self._refuse("EntryNotFound")

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse("RepoNotFound", 401)
        elif revision not in ("main", repository.commit):
            self._refuse("RevisionNotFound")
        else:
            return repository
        return None

    def _info(self, name: str, revision: str) -> None:
        if (repository := self._repository(name, revision)) is None:
            return
        siblings = []
        for file, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": file}
            if repository.states_hashes:
                entry |= {"size": len(content), "blobId": git_sha1(content)}
                if file.endswith(LARGE):
                    entry["lfs"] = {"sha256": etag(file, content), "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        facts = {"id": name, "sha": repository.commit, "private": repository.private, "gated": repository.gated}
        self._reply({**facts, "siblings": siblings, "cardData": {"license": repository.licence}, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if (repository := self._repository(name, revision)) is None:
            return
        entries = []
        for file, content in repository.files.items():
            entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": git_sha1(content)}
            if file.endswith(LARGE):
                entry["lfs"] = {"oid": etag(file, content), "size": len(content), "pointerSize": 1}
            entries.append(entry)
        self._reply(entries)

    def _file(self, name: str, revision: str, file: str) -> None:
        if (repository := self._repository(name, revision)) is None:
            return
        if repository.gated:
            self._refuse("GatedRepo", 403)
            return
        if file not in repository.files:
            self._refuse("EntryNotFound")
            return
        content = repository.files[file]
        headers = {"ETag": f'"{etag(file, content)}"', "X_Repo_Commit": repository.commit, "Accept_Ranges": "bytes"}
        if file in repository.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if file in repository.cut and self.command == "GET":
            self._reply(content[: len(content) // 2], **headers)  # a proxy that states the length of what it has
            return
        self._reply(content, **headers)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.calls.append((self.command, path))
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(LARGE) else "regular"} for p in files]
            self._reply({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/upload/{entry['oid']}"}}
            self._reply({"transfer": "basic", "objects": objects})
        elif commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(commit[1], body)
        else:
            self._refuse("EntryNotFound")

    def do_PUT(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.server.calls.append((self.command, path))
        self.server.large[path.rpartition("/")[2]] = body
        self._reply()

    def _create(self, request: dict[str, Any]) -> None:
        name = "/".join(filter(None, (request.get("organization", "owner"), request["name"])))
        if self.headers.get("Authorization") is None:
            self._refuse("Unauthorized", 401)
        elif name in self.server.repositories:
            self._reply({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            is_private = request.get("visibility") == "private" and not self.server.ignores_visibility
            self.server.repositories[name] = Repository(private=is_private)
            self._reply({"url": f"{self.server.url}/{name}", "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del repository.files[value["path"]]
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.large[value["oid"]]
        repository.commit = "b" * 40
        self._reply(
            {"commitUrl": f"{self.server.url}/{name}/commit/{repository.commit}", "commitOid": repository.commit}
        )
