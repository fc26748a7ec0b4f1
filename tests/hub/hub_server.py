# Copyright 2026 The glip_hf authors. MIT licence.
"""A small Hub: the endpoints that pushing and loading a model need, on loopback, in memory.

    with HubServer() as hub:
        subprocess.run(..., env=os.environ | hub.environment)
        hub.files("user/name")["README.md"]

Small files are committed directly, weights and other large ones through LFS, as on the real Hub. An unknown endpoint is
answered with 404 and noted in `hub.unknown`.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
MAX_REGULAR_BYTES = 5_000_000


class HubServer:
    """Repositories as lists of commits, each with all its files; running inside a `with` block."""

    token = "hf_only_for_tests"

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.large: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.requests: list[str] = []
        self.unknown: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> "HubServer":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.repos[repo][-1][1]

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit id and files of "main" or of a commit id."""
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] != "header":
                raise NotImplementedError(line["key"])
        digest = hashlib.sha1(repr((repo, len(self.repos[repo]), sorted(files))).encode())
        self.repos[repo].append((digest.hexdigest(), files))
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        writes = self.command in ("POST", "PUT") and not path.startswith("/lfs/")
        if writes and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self._error(401, "", "a token is needed")
        for method, pattern, respond in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else None):
                repo = match.groupdict().get("repo")
                if repo is not None and repo not in self.hub.repos:
                    return self._error(404, "RepoNotFound", f"no repository {repo}")
                return respond(self, body, **match.groupdict())
        if path != "/api/agent-harnesses":  # optional for huggingface_hub
            self.hub.unknown.append(f"{self.command} {path}")
        self._error(404, "", f"not offered: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers = {"content_type": "application/json", **headers}
        for name, value in {**headers, "content_length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _error(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(content, status, x_error_code=code, x_error_message=message)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    # -- endpoints ---------------------------------------------------------------------------------

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        if repo in self.hub.repos:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
        self.hub.repos[repo] = [(hashlib.sha1(repo.encode()).hexdigest(), {})]
        self._json({"url": f"{self.hub.url}/{repo}", "id": repo})

    def _check_card(self, body: bytes) -> None:
        has_metadata = json.loads(body)["content"].startswith("---\n")
        errors = [] if has_metadata else [{"message": "no metadata"}]
        self._json({"errors": errors, "warnings": []}, 200 if has_metadata else 400)

    def _who(self, body: bytes) -> None:
        self._json({"type": "user", "name": "user", "orgs": []})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        modes = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > MAX_REGULAR_BYTES
            modes.append({"path": file["path"], "uploadMode": "lfs" if large else "regular"})
        self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _lfs_batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            href = f"{self.hub.url}/lfs/{wanted['oid']}"
            missing = wanted["oid"] not in self.hub.large
            objects.append({**wanted, **({"actions": {"upload": {"href": href}}} if missing else {})})
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(422, "", "the SHA-256 differs")
        self.hub.large[oid] = body
        self._json({})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        oid = self.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _info(self, body: bytes, repo: str, revision: str = "main") -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"no revision {revision}")
        siblings = [{"rfilename": name} for name in found[1]]
        self._json({"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings})

    def _tree(self, body: bytes, repo: str, revision: str, folder: str | None) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"no revision {revision}")
        if folder:
            return self._error(404, "EntryNotFound", f"no folder {folder}: all files are at the top level")
        self._json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(name, content)}
                for name, content in found[1].items()
            ]
        )

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"no revision {revision}")
        commit, files = found
        if path not in files:
            content = json.dumps({"error": f"no file {path}"}).encode()
            headers = {"x_error_code": "EntryNotFound", "x_repo_commit": commit}
            return self._send(content, 404, **headers)
        self._send(
            files[path],
            content_type="application/octet-stream",
            etag=f'"{_etag(path, files[path])}"',
            x_repo_commit=commit,
        )


def _etag(path: str, content: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._check_card),
    ("GET", r"/api/whoami-v2", _Handler._who),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_upload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", _Handler._commit),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", _Handler._info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(?P<folder>/.+)?", _Handler._tree),
    ("GET", rf"/api/models/{_REPO}", _Handler._info),
    ("GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler._resolve),
]
