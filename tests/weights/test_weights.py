"""``xmemk weights`` against a server on the loopback address: whole, half, wrong, a page, and no
server at all.
"""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from xmemk import weights
from xmemk.cli.app import run

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``manner`` says how."""

    manner = "whole"
    ranges = True

    def __init__(self):
        self.asked = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/v1.0"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        manner, content = self.server.manner, CONTENT
        if manner == "page":
            return self.reply(200, b"<html>Please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if manner == "page without a type":
            return self.reply(200, b"<html>Please log in</html>", {"Content-Type": "application/octet-stream"})
        if manner == "absent":
            return self.send_error(404)
        if manner == "wrong":
            content = CONTENT[:-1] + b"?"
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start >= len(content):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        body = content[start:]
        sent = body[: len(body) // 2] if manner == "half" else body
        return self.reply(206 if start else 200, sent, headers, length=len(body))

    def reply(self, status, body, headers, length=None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server, from which xmemk fetches into tmp_path; the releases are of CONTENT, one with a
    known sum.
    """
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    known = weights.Release("XMem", "known", len(CONTENT), SUM)
    monkeypatch.setattr(weights, "RELEASES", {"XMem": known, "XMem-s012": weights.Release("XMem-s012", "unknown")})
    monkeypatch.setattr(weights, "ADDRESS", made.address)
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def fetch(server, name="XMem"):
    return weights.fetch(name, address=server.address)


def sentence(server, name="XMem"):
    """The error of a fetch: one sentence, which says where the file belongs if it is to be fetched
    by hand.
    """
    with pytest.raises(weights.WeightsError) as caught:
        fetch(server, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download(server, tmp_path):
    seen = []
    file = weights.fetch("XMem.pth", address=server.address, progress=lambda *pair: seen.append(pair))
    assert file == tmp_path / "xmemk" / "XMem.pth" == weights.find()
    assert file.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in file.parent.iterdir()] == ["XMem.pth"]
    assert fetch(server) == file
    assert server.asked == [("/v1.0/XMem.pth", None)]  # the second found it


def test_half_a_download_goes_on(server, tmp_path):
    server.manner = "half"
    assert "run again, and it goes on" in sentence(server)
    part = tmp_path / "xmemk" / "XMem.pth.part"
    assert part.read_bytes() == CONTENT[: len(CONTENT) // 2]
    with pytest.raises(FileNotFoundError):
        weights.find()
    server.manner = "whole"
    assert fetch(server).read_bytes() == CONTENT
    assert server.asked[-1] == ("/v1.0/XMem.pth", f"bytes={len(CONTENT) // 2}-")
    assert not part.exists()


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.manner = "half"
    sentence(server)
    server.manner, server.ranges = "whole", False
    assert fetch(server).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_a_part_that_is_whole_or_longer(server, tmp_path, extra):
    part = tmp_path / "xmemk" / "XMem.pth.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + extra)
    assert fetch(server).read_bytes() == CONTENT


def test_a_wrong_checksum(server, tmp_path):
    server.manner = "wrong"
    said = sentence(server)
    assert f"wanted the checksum {SUM}, got" in said
    assert list((tmp_path / "xmemk").iterdir()) == []


def test_a_file_that_was_damaged_later(server, tmp_path):
    file = fetch(server)
    file.write_bytes(CONTENT[:-1] + b"?")
    assert "delete it and run again" in sentence(server)
    file.write_bytes(CONTENT[:1000])
    assert f"wanted {len(CONTENT):,} bytes, got 1,000" in sentence(server)


def test_an_unknown_checksum_is_that_of_the_first_download(server):
    file = fetch(server, "XMem-s012")
    assert file.with_name("XMem-s012.pth.sha256").read_text() == f"{SUM}  XMem-s012.pth\n"
    file.unlink()
    server.manner = "wrong"
    assert f"wanted the checksum {SUM}" in sentence(server, "XMem-s012")


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ("page", "a page (text/html) came instead of the file"),
        ("page without a type", "not a file that torch.save wrote"),
        ("absent", "the server says 404 Not Found"),
    ],
)
def test_answers_that_are_no_file(server, tmp_path, manner, words):
    server.manner = manner
    said = sentence(server)
    assert words in said
    assert f"fetch {server.address}/XMem.pth by other means and put it at {tmp_path}/xmemk/XMem.pth" in said
    assert not list((tmp_path / "xmemk").iterdir())


def test_offline(server, tmp_path):
    server.shutdown()  # before its socket goes: a connection in between would be reset
    server.server_close()
    said = sentence(server)
    assert "cannot be reached" in said
    assert f"fetch {server.address}/XMem.pth by other means and put it at {tmp_path}/xmemk/XMem.pth" in said


def test_the_command(server, tmp_path, capsys):
    assert run(["weights", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "MIT licence" in listed
    assert "XMem-s012" in listed
    assert run(["weights"]) == 0
    said = capsys.readouterr().out
    assert "MIT licence" in said
    assert "XMem.pth" in said.replace("\n", "")
    assert run(["weights", "XMem-s99"]) == 1
    assert "wanted one of XMem, XMem-s012, got 'XMem-s99'" in capsys.readouterr().err


def test_it_is_found_where_xmem_puts_it(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="`xmemk weights` downloads it"):
        weights.find()
    (tmp_path / "saves").mkdir()
    (tmp_path / "saves" / "XMem.pth").write_bytes(CONTENT)
    assert weights.find().as_posix() == "saves/XMem.pth"


@pytest.mark.parametrize("command", ["segment", "eval"])
def test_the_commands_find_it(server, tmp_path, capsys, command):
    """They get as far as reading the file, which here is no network; before it is there, they say
    how to get it.
    """
    pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    folders = {"JPEGImages/480p/clip": "jpg", "Annotations/480p/clip": "png"}
    for folder, kind in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        for frame in range(2):
            image.new("L" if kind == "png" else "RGB", (32, 32), 1).save(tmp_path / folder / f"{frame:05d}.{kind}")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("clip\n")
    words = {
        "segment": ["segment", "JPEGImages/480p/clip", "--mask", "Annotations/480p/clip/00000.png"],
        "eval": ["eval", ".", "--split", "val"],
    }[command]
    assert run(words) == 1
    assert "`xmemk weights` downloads it" in capsys.readouterr().err.replace("\n", " ")
    fetch(server)
    assert run(words) == 1
    assert "xmemk/XMem.pth: not a file of parameters" in capsys.readouterr().err


def test_what_is_released():
    assert weights.ADDRESS == "https://github.com/hkchengrex/XMem/releases/download/v1.0"
    for name, release in weights.RELEASES.items():
        assert release.file == f"{name}.pth"
        assert (release.size is None) == (release.sha256 is None)
        assert release.sha256 is None or re.fullmatch("[0-9a-f]{64}", release.sha256)
