"""A hub on this machine: what huggingface_hub asks of the real one, with faults on demand.

Large files, those that the hub keeps in LFS, are redirected to another path as the real ones are to another host.
"""

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".bin", ".pt")
CODES = {401: "GatedRepo", 404: "RepoNotFound"}  # how the hub says which 401 and 404 it means


def digest_of(name: str, data: bytes) -> str:
    """The hash that the hub knows a file by."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """What the server has and does; tests change it while it runs.

    Args:
        repos: Repository to its files, all of one commit, main.
        status: Answer everything with it.
        cuts: Number of transfers to break off.
        cut_after: After how many bytes of the body.
        wrong: Files of which another byte is sent.
        stalled: Files of which only the first half is sent, until they are taken out of the set.
        has_ranges: False for a server that always sends the whole.
        half_sent: Files of `stalled` of which the first half is sent.
        writer: The token that may write; None for nobody's.
        requests: "GET /path" in the order they came.
        sent: Bytes of files that were sent.
        ranges: Range headers, as they came.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int | None = None
    cuts: int = 0
    cut_after: int = 0
    wrong: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    half_sent: set[str] = field(default_factory=set)
    has_ranges: bool = True
    writer: str | None = None
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, repo: str) -> str:
        """Of a repository as it is now."""
        digests = sorted((name, digest_of(name, data)) for name, data in self.repos[repo].items())
        return hashlib.sha1(repr(digests).encode()).hexdigest()

    def environment(self, home) -> dict[str, str]:
        """For a process that shall know no other hub, with its cache in `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def forget(self) -> None:
        """Count from now."""
        self.requests, self.ranges, self.sent = [], [], 0


@contextmanager
def running():
    """A hub for as long as the context lasts."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def in_this_process(cache):
    """A hub in place of the one that huggingface_hub knows in this process, with its cache in that folder."""
    from huggingface_hub import close_session, constants

    with running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
        close_session()


class Seen:
    """A reporter that remembers."""

    def __init__(self):
        self.said, self.bars = [], []

    @contextmanager
    def bar(self, title, total, unit, device, done=0):
        seen = {"title": title, "total": total, "unit": unit, "begun": done, "steps": []}
        self.bars.append(seen)
        yield type("Bar", (), {"advance": lambda self, count=1, note="": seen["steps"].append(count)})()

    def say(self, line):
        self.said.append(line)

    warn = say


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that leave are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        """Making a repository, asking how files are sent, and a commit with all of them in it."""
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(f"POST {path}")
        if self.hub.status or self.headers.get("Authorization") != f"Bearer {self.hub.writer}":
            return self._send(self.hub.status or 403, {})
        if path == "/api/repos/create":
            record = json.loads(body)
            repo = "/".join(filter(None, [record.get("organization"), record["name"]]))
            self.hub.repos.setdefault(repo, {})
            return self._json({"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo, _, act = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if act == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._json({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.hub.commit(repo)
        return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status:
            return self._send(self.hub.status, {"X-Error-Code": CODES.get(self.hub.status, "")})
        for repo in self.hub.repos:
            for start, act in (
                (f"/api/models/{repo}/revision/", self._info),
                (f"/api/models/{repo}/tree/", self._tree),
                (f"/{repo}/resolve/", self._resolve),
                (f"/cdn/{repo}/", self._file),
            ):
                if path.startswith(start):
                    revision, _, name = path.removeprefix(start).partition("/")
                    if revision not in ("main", self.hub.commit(repo)):
                        return self._send(404, {"X-Error-Code": "RevisionNotFound"})
                    return act(repo, name)
        return self._send(404, {"X-Error-Code": "RepoNotFound"})

    def _info(self, repo, _):
        siblings = []
        for name, data in self.hub.repos[repo].items():
            file = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if name.endswith(LARGE):
                file["lfs"] = {"sha256": digest_of(name, data), "size": len(data), "pointerSize": 130}
            else:
                file["blobId"] = digest_of(name, data)
            siblings.append(file)
        self._json({"id": repo, "sha": self.hub.commit(repo), "siblings": siblings})

    def _tree(self, repo, _):
        files = []
        for name, data in self.hub.repos[repo].items():
            file = {"type": "file", "path": name, "size": len(data), "oid": digest_of(name, data)[:40]}
            if name.endswith(LARGE):
                file["lfs"] = {"oid": digest_of(name, data), "size": len(data), "pointerSize": 130}
            files.append(file)
        self._json(files)

    def _resolve(self, repo, name):
        data = self.hub.repos[repo].get(name)
        if data is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        if not name.endswith(LARGE):
            return self._file(repo, name)
        commit = self.hub.commit(repo)
        headers = {
            "Location": f"/cdn/{repo}/{commit}/{name}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{digest_of(name, data)}"',
            "X-Linked-Size": str(len(data)),
        }
        return self._send(302, headers)

    def _file(self, repo, name):
        data, commit = self.hub.repos[repo][name], self.hub.commit(repo)
        headers = {"ETag": f'"{digest_of(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name in self.hub.wrong:
            data = bytes([data[0] ^ 1]) + data[1:]
        wanted, status = self.headers.get("Range"), 200
        if wanted:
            self.hub.ranges.append(wanted)
            if self.hub.has_ranges:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data = data[start:]
        self._send(status, headers, data, name=name)

    def _json(self, value):
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), is_file=False)

    def _send(self, status, headers, data=b"", is_file=True, name=""):
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file and self.hub.cuts and len(data) > self.hub.cut_after:
            self.hub.cuts -= 1
            data, self.close_connection = data[: self.hub.cut_after], True
        if name in self.hub.stalled:
            self.wfile.write(data[: len(data) // 2])
            self.hub.half_sent.add(name)
            while name in self.hub.stalled:
                time.sleep(0.01)
            data = data[len(data) // 2 :]
        self.hub.sent += len(data) if is_file else 0
        self.wfile.write(data)


def bytes_of(snapshot) -> dict[str, bytes]:
    return {name: (snapshot.folder / name).read_bytes() for name in snapshot.files}


def hf(hub, command: str) -> None:
    """Run a command that an error named, in huggingface_hub's own program."""
    program, *words = shlex.split(command)
    assert program == "hf"
    code = "from huggingface_hub.cli.hf import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | hub.environment(Path(constants.HF_HUB_CACHE).parent) | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
