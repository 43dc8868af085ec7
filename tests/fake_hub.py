"""A local stand-in for the Hugging Face Hub: the HTTP API that the `huggingface_hub` client speaks, on 127.0.0.1.

Repositories have branches of commits, each a mapping of paths to contents, which lie in a folder under their SHA-256.
It covers what pushing and pulling a model needs: creating repositories and branches, preupload, LFS uploads,
commits, repository info, trees, and downloads.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER = "hf_owner"  # may do everything; its namespace is "someone"
READER = "hf_reader"  # may read public repositories

_COMMIT = re.compile("[0-9a-f]{40}")


class HubError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Repository:
    """`branches`: each one's commits, oldest first; `trees`: each commit's files, path to SHA-256."""

    private: bool
    branches: dict[str, list[str]] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, tree: dict[str, str]) -> str:
        history = self.branches.setdefault(branch, [])
        oid = hashlib.sha1(json.dumps([branch, len(self.trees), message, sorted(tree.items())]).encode()).hexdigest()
        self.trees[oid], self.messages[oid] = tree, message
        history.append(oid)
        return oid

    def resolve(self, revision: str) -> str:
        if revision in self.branches:
            return self.branches[revision][-1]
        if _COMMIT.fullmatch(revision) and revision in self.trees:
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Hub:
    """The server, and what it holds: `repositories` by id, and the SHA-256 of what came by `lfs`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.lfs: set[str] = set()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # The client takes a redirect to another host for the end of the Hub's own answer.
        self.storage = f"http://localhost:{self.server.server_port}/lfs/objects"

    def store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / digest).write_bytes(content)
        return digest

    def add(self, repo_id: str, folder: str | Path, branch: str = "main") -> str:
        """Puts a folder's files into a repository as one commit. Returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository(private=False))
        tree = {file.name: self.store(file.read_bytes()) for file in Path(folder).iterdir() if file.is_file()}
        if branch not in repository.branches and "main" in repository.branches:
            repository.branches[branch] = list(repository.branches["main"])
        return repository.commit(branch, "Add", tree)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        tree = repository.trees[repository.resolve(revision)]
        return {path: (self.folder / digest).read_bytes() for path, digest in tree.items()}

    def run(self, script: Path, *arguments: str, home: Path) -> dict[str, Any]:
        """Runs a Python script whose Hub this is. Returns what its last line of output holds, as JSON."""
        # Without what this process was told of other Hubs, tokens and proxies.
        others = ("hf_", "hugging", "transformers_", "http_proxy", "https_proxy", "all_proxy")
        environment = {name: value for name, value in os.environ.items() if not name.lower().startswith(others)} | {
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": OWNER,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))),
        }
        done = subprocess.run(
            [sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A hub with its files in a folder, until the end of the block."""
    folder.mkdir(parents=True)
    hub = Hub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path.lstrip("/")
        with self.hub.lock:
            try:
                self._answer(*self._respond(path, body))
            except HubError as error:
                headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
                self._answer({"error": str(error)}, error.status, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _check_login(self) -> None:
        if self._token not in (OWNER, READER):
            raise HubError(401, "Invalid username or password.")

    def _check_may_write(self) -> None:
        self._check_login()
        if self._token != OWNER:
            raise HubError(403, "You don't have the rights to write to this namespace.")

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self._token != OWNER):
            if self._token is None:  # as the Hub does, which does not say whether there is one
                raise HubError(401, "Invalid username or password.")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def _respond(self, path: str, body: bytes) -> tuple:
        """Content, status, headers."""
        for pattern, respond in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                # Quoted until here: a slash in a branch's name is not one of the path.
                return respond(self, body, **{name: unquote(part) for name, part in match.groupdict().items() if part})
        raise HubError(404, f"The stand-in has no {self.command} {path}")

    def _whoami(self, body: bytes) -> tuple:
        self._check_login()
        return ({"type": "user", "name": "someone", "orgs": [{"name": "org"}], "auth": {}},)

    def _create(self, body: bytes) -> tuple:
        self._check_may_write()
        asked = json.loads(body)
        repo_id = f"{asked['organization'] or 'someone'}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            return {"error": "You already created this model repo", "url": url}, 409
        repository = self.hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        repository.commit("main", "initial commit", {".gitattributes": self.hub.store(b"*.safetensors filter=lfs\n")})
        return ({"url": url, "name": repo_id},)

    def _validate_yaml(self, body: bytes) -> tuple:
        """Of a card; one of the many fields that the Hub knows the kind of."""
        words = json.loads(body)["content"].split("---\n")
        metadata = yaml.safe_load(words[1]) if words[0] == "" else {}
        errors = [] if isinstance(metadata.get("tags", []), list) else [{"message": '"tags" must be an array'}]
        return {"errors": errors, "warnings": []}, 400 if errors else 200

    def _create_branch(self, body: bytes, repo: str, branch: str) -> tuple:
        self._check_may_write()
        repository = self._repository(repo)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = list(repository.branches["main"])
        return ({},)

    def _preupload(self, body: bytes, repo: str, revision: str) -> tuple:
        self._check_may_write()
        self._repository(repo).resolve(revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return ({"files": files},)

    def _lfs_batch(self, body: bytes, repo: str) -> tuple:
        self._check_may_write()
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs:
                links = {
                    name: {"href": f"{self.hub.endpoint}/lfs/{name}/{wanted['oid']}"} for name in ("upload", "verify")
                }
                entry["actions"] = links
            objects.append(entry)
        return ({"transfer": "basic", "objects": objects},)

    def _lfs_upload(self, body: bytes, oid: str) -> tuple:  # as of a storage provider: the link is the permission
        if self.hub.store(body) != oid:
            raise HubError(400, "The content is not what its name says.")
        self.hub.lfs.add(oid)
        return ({},)

    def _lfs_verify(self, body: bytes, oid: str) -> tuple:
        if oid not in self.hub.lfs or (self.hub.folder / oid).stat().st_size != json.loads(body)["size"]:
            raise HubError(404, "The object was not uploaded.")
        return ({},)

    def _lfs_download(self, body: bytes, oid: str) -> tuple:
        return ((self.hub.folder / oid).read_bytes(),)

    def _commit(self, body: bytes, repo: str, revision: str) -> tuple:
        self._check_may_write()
        repository = self._repository(repo)
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
            pull_request = f"refs/pr/{number}"
            repository.branches[pull_request] = list(repository.branches[revision])
            revision = pull_request
        tree = dict(repository.trees[repository.resolve(revision)])
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                tree[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile" and value["oid"] in self.hub.lfs:
                tree[value["path"]] = value["oid"]
            else:
                raise HubError(400, f"The stand-in cannot commit {entry}")
        oid = repository.commit(revision, message, tree)
        answer = {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid}
        if revision.startswith("refs/pr/"):
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{revision.removeprefix('refs/pr/')}"
        return (answer,)

    def _info(self, body: bytes, repo: str, revision: str | None = None) -> tuple:
        repository = self._repository(repo)
        oid = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in repository.trees[oid]]
        info = {"id": repo, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings}
        return (info,)

    def _tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> tuple:
        repository = self._repository(repo)
        if folder is not None:
            raise HubError(404, "No repository here has folders.", "EntryNotFound")
        entries = []
        for path, digest in repository.trees[repository.resolve(revision)].items():
            size = (self.hub.folder / digest).stat().st_size
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": digest[:40]}
            if digest in self.hub.lfs:
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
            entries.append(entry)
        return (entries,)

    def _refs(self, body: bytes, repo: str) -> tuple:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": history[-1]}
            for name, history in self._repository(repo).branches.items()
        ]
        return ({"branches": branches, "converts": [], "tags": []},)

    def _download(self, body: bytes, repo: str, revision: str, path: str) -> tuple:
        repository = self._repository(repo)
        oid = repository.resolve(revision)
        if path not in repository.trees[oid]:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        digest = repository.trees[oid][path]
        content = (self.hub.folder / digest).read_bytes()
        headers = {"X-Repo-Commit": oid, "ETag": f'"{digest}"'}
        if digest in self.hub.lfs:
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return b"", 302, headers | linked | {"Location": f"{self.hub.storage}/{digest}"}
        return content, 200, headers


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (r"GET api/whoami-v2", _Handler._whoami),
    (r"POST api/repos/create", _Handler._create),
    (r"POST api/validate-yaml", _Handler._validate_yaml),
    (rf"POST api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler._create_branch),
    (rf"POST api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"POST {_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (r"PUT lfs/upload/(?P<oid>\w+)", _Handler._lfs_upload),
    (r"POST lfs/verify/(?P<oid>\w+)", _Handler._lfs_verify),
    (r"(GET|HEAD) lfs/objects/(?P<oid>\w+)", _Handler._lfs_download),
    (rf"POST api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler._commit),
    (rf"GET api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler._tree),
    (rf"GET api/models/{_REPO}/refs", _Handler._refs),
    (rf"GET api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler._info),
    (rf"GET api/models/{_REPO}", _Handler._info),
    (rf"(GET|HEAD) {_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler._download),
]
