"""Hold our cache of the Hugging Face hub against that of its own client: each reads what the other fetched.

    pip install huggingface_hub
    python tests/hub/check_cache.py --programs target/release

A server on loopback has one model, a fixture; nothing else is asked for anything.
"""

import argparse
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "fixtures" / "qwen3" / "untied_bf16_sharded"
FILES = sorted(path for path in FOLDER.iterdir() if path.name != "reference.safetensors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/name"


class Hub(http.server.BaseHTTPRequestHandler):
    """`/api/models/ID/revision/REV`, `/api/models/ID/tree/REV` and `/ID/resolve/REV/FILE`, with the headers that the hub sends."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[1]
        found = {path.name: path for path in FILES}.get(name)
        headers = {"x-repo-commit": COMMIT}
        if self.path.startswith(f"/api/models/{NAME}/tree/"):
            body = json.dumps([{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40} for path in FILES]).encode()
        elif self.path.startswith(f"/api/models/{NAME}"):
            files = [{"rfilename": path.name} for path in FILES]
            body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode()
        elif found and f"/{NAME}/resolve/" in self.path:
            body = found.read_bytes()
            headers |= {"etag": f'"{hashlib.sha256(body).hexdigest()}"', "accept-ranges": "bytes"}
        else:
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        part = self.headers["range"] if found else None
        self.send_response(206 if part else 200)
        if part:
            first, last = part.removeprefix("bytes=").split("-")
            last = min(int(last or len(body)), len(body) - 1)
            headers["content-range"] = f"bytes {first}-{last}/{len(body)}"
            body = body[int(first) : last + 1]
        for key, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"error: {what}")


def tree(cache: Path) -> dict[str, str]:
    """What lies in a model's part of a cache: where a link leads, or the SHA-256 of a file."""
    root, found = cache / "hub" / "models--org--name", {}
    for folder in ("blobs", "refs", "snapshots"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_symlink():
                found[str(path.relative_to(root))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=lambda path: Path(path).resolve(), required=True)
    programs = parser.parse_args().programs
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"

    def environment(cache: Path, offline: bool) -> dict[str, str]:
        unset = ("HF_HUB_CACHE", "HF_TOKEN")
        kept = {key: value for key, value in os.environ.items() if key not in unset}
        own = {"HF_HOME": str(cache), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "01"[offline]}
        return kept | own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def ours(cache: Path, offline: bool) -> None:
        """Our program takes the name, and finds the model that the fixture is, to the bit."""
        command = [programs / "exp_verify", FOLDER, NAME, "--tolerance", "0"]
        done = subprocess.run(command, env=environment(cache, offline), capture_output=True, text=True)
        require(done.returncode == 0, f"exp_verify: {done.stderr}")

    def theirs(cache: Path, offline: bool) -> None:
        """Their client, in a process of its own: it reads its environment once."""
        code = f"import huggingface_hub; print(huggingface_hub.snapshot_download({NAME!r}))"
        done = subprocess.run([sys.executable, "-c", code], env=environment(cache, offline), capture_output=True, text=True)
        require(done.returncode == 0, f"huggingface_hub: {done.stderr}")
        snapshot = Path(done.stdout.splitlines()[-1])
        for path in FILES:
            require((snapshot / path.name).read_bytes() == path.read_bytes(), f"huggingface_hub reads another {path.name}")

    with tempfile.TemporaryDirectory() as scratch:
        of_theirs, of_ours = Path(scratch) / "theirs", Path(scratch) / "ours"
        theirs(of_theirs, offline=False)
        ours(of_theirs, offline=True)
        ours(of_ours, offline=False)
        theirs(of_ours, offline=True)
        require(tree(of_theirs) == tree(of_ours), f"the caches differ: {set(tree(of_theirs).items()) ^ set(tree(of_ours).items())}")
        print(f"{len(tree(of_ours))} files and links of the cache are those of huggingface_hub; each reads what the other fetched")


main()
