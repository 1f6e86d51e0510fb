"""What the page lets in from the network: hand-made requests to it, and pictures as gradio hands them over."""

from __future__ import annotations

import io
import json
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from showo import ShowoPipeline
from showo.engine.batching import Engine
from showo.errors import UserError

gr = pytest.importorskip("gradio", reason="the extra `demo` is not installed")

from showo.serve.page import app, uploads  # noqa: E402
from showo.serve.page.drawing import refusal  # noqa: E402
from tests.ports import free_port  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(ShowoPipeline.from_pretrained()) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[httpx.Client]:
    with app.served_page(engine, "127.0.0.1", free_port()) as address, httpx.Client(base_url=address) as client:
        yield client


def opened(client: httpx.Client, path: str) -> tuple[Any, str]:
    """A browser says that the file at `path` was opened in the tab that varies pictures: what its box becomes (None:
    empty), and what is said of it.
    """
    parts = client.get("/config").json()
    box = next(part["id"] for part in parts["components"] if part["props"].get("elem_id") == "vary-picture")
    event = next(each["id"] for each in parts["dependencies"] if [box, "upload"] in each["targets"])
    call = {"data": [{"path": path, "meta": FILE}], "fn_index": event, "session_hash": secrets.token_hex(8)}
    assert client.post("/gradio_api/queue/join", json=call).status_code == 200
    said = []
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": call["session_hash"]}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "log":
                said.append(message["log"])
            if message.get("msg") == "process_completed":
                output = message["output"]
                return output.get("data", [None])[0], "".join([*said, output.get("error") or ""])
    raise AssertionError("no answer")


def uploaded(client: httpx.Client, content: bytes, name: str = "picture.png") -> str:
    (path,) = client.post("/gradio_api/upload", files={"files": (name, content)}).json()
    return path


def png(size: tuple[int, int], colour: str = "green") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG file of a few bytes that promises side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_a_picture_is_taken_and_fitted(client: httpx.Client) -> None:
    box, said = opened(client, uploaded(client, png((300, 200))))
    assert not said
    shown = client.get("/gradio_api/file=" + box["path"])
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no picture", "not a readable picture"), (bomb(30_000), "more than 67108864"), (png((9, 9))[:40], "readable")],
    ids=["text", "bomb", "cut"],
)
def test_a_bad_picture_is_refused_with_its_reason(client: httpx.Client, content: bytes, reason: str) -> None:
    box, said = opened(client, uploaded(client, content))
    assert box is None
    assert reason in said
    assert "/" not in said, "names a path of this machine"


@pytest.mark.parametrize("path", ["/etc/hostname", "http://127.0.0.1:1/x.png", "https://example.com/x.png"])
def test_only_what_was_uploaded_is_opened(client: httpx.Client, path: str) -> None:
    box, said = opened(client, path)
    assert box is None
    assert path.startswith("/") or "must be uploaded" in said
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:1/x.png",
        "/gradio_api/proxy=http://127.0.0.1:1/x.png",
        "/gradio_api/run/predict",
        "/gradio_api/vibe-code/",
        "/gradio_api/run-history/buckets",
        "/monitoring",
        "/docs",
        "/assets/../../../../../../etc/hostname",
    ],
)
def test_other_paths_are_not_there(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_files_of_the_machine_are_not_served(client: httpx.Client) -> None:
    assert client.get(f"/gradio_api/file={Path(__file__)}").status_code == 403


def test_too_much_is_refused_also_where_it_is_not_announced(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_BYTES", 1000)
    monkeypatch.setattr(app, "_ROOM", 0)
    assert client.post("/gradio_api/queue/join", content=b"x" * 2000).status_code == 413
    for path, kind in (("queue/join", "application/json"), ("upload", "multipart/form-data; boundary=x")):
        chunks = (b"x" * 100 for _ in range(20))
        answer = client.post(f"/gradio_api/{path}", content=chunks, headers={"content-type": kind})
        assert answer.status_code in (400, 413)
    assert client.get("/").status_code == 200


def test_a_name_that_only_leads_here_is_refused(client: httpx.Client) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_the_browser_is_told_to_fetch_from_here_alone(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_a_port_that_is_taken_is_said(engine: Engine, client: httpx.Client) -> None:
    with (
        pytest.raises(UserError, match=r"cannot serve on 127\.0\.0\.1 port"),
        app.served_page(engine, "127.0.0.1", client.base_url.port or 0),
    ):
        pass


def test_a_message_is_no_markup() -> None:
    assert str(refusal(UserError("<b>" * 1000)).message).startswith("&lt;b&gt;")
    assert len(refusal(UserError("x" * 10_000)).message) < 1000


def test_the_file_of_a_picture_that_is_shown_is_never_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser may be reading it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks(analytics_enabled=False):
        box = uploads.result_box()
    picture = Image.open(io.BytesIO(png((8, 4))))
    paths = [box.postprocess(picture).path for _ in range(2)]
    assert paths[0] != paths[1]
    assert all(Image.open(path).tobytes() == picture.tobytes() for path in paths)


# ---- what an editor sends ahead ----------------------------------------------------------------------------------


def blob(kind: str, key: str, content: bytes, index: str = "0") -> Any:
    return SimpleNamespace(data={"type": kind, "id": key, "index": index}, files=[("blob", content)])


@pytest.fixture
def box() -> Any:
    with gr.Blocks(analytics_enabled=False):
        return uploads.brush_box((64, 64))


def taken(box: Any, key: str) -> uploads.Painted | None:
    return box.preprocess(SimpleNamespace(id=key, background=None, layers=[]))


def test_a_painting_is_a_picture_and_a_mask(box: Any) -> None:
    layer = Image.new("RGBA", (20, 10))
    layer.paste((255, 0, 255, 3), (5, 2, 9, 6))
    buffer = io.BytesIO()
    layer.save(buffer, "PNG")
    box.accept_blobs(blob("background", "a", png((20, 10))))
    box.accept_blobs(blob("layer", "a", buffer.getvalue()))
    painted = taken(box, "a")
    assert painted is not None
    assert painted.picture.getcolors() == [(200, (0, 128, 0))]
    assert painted.mask.getbbox() == (5, 2, 9, 6)
    assert painted.mask.getcolors() == [(184, 0), (16, 255)]
    assert taken(box, "a") is None, "kept after it was taken"


def test_numbers_of_layers_and_forgotten_paintings_take_no_memory(box: Any) -> None:
    box.accept_blobs(blob("layer", "first", png((4, 4)), index=str(10**9)))
    for number in range(uploads.MAX_PAINTINGS):
        box.accept_blobs(blob("background", str(number), png((4, 4))))
    assert taken(box, "first") is None
    assert taken(box, "0") is not None
    box.accept_blobs(blob("background", "huge", b"x" * (uploads.MAX_BYTES + 1)))
    assert taken(box, "huge") is None
