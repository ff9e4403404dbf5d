"""Links of all pages lead somewhere in the repository; those to elsewhere are the ones listed
here.
"""

import links
import pytest

# Nothing here can follow them: to add one, look at it first.
EXTERNAL = {
    "https://arxiv.org/abs/2207.07115",
    "https://github.com/hkchengrex/XMem",
    "https://github.com/hkchengrex/XMem/releases/download/v1.0/XMem.pth",
    "https://keepachangelog.com",
    "https://semver.org",
}


def test_links_into_the_repository():
    assert [problem for page in links.pages() for problem in links.broken(page)] == []


def test_links_to_elsewhere_are_listed():
    assert {target for page in links.pages() for target in links.links(page) if target.startswith("http")} == EXTERNAL


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](absent.md)", "page.md: absent.md: no such file"),
        ("[a](#absent)", "page.md: #absent: no such heading"),
        ("[a](other.md#two-words)", None),
        ("[a](other.md#three)", "page.md: other.md#three: no such heading"),
        ('<img src="absent.png">', "page.md: absent.png: no such file"),
        ("[a](../outside.md)", "page.md: ../outside.md: outside of the repository"),
        ("```\n[a](absent.md)\n```\n`[a](absent.md)`", None),
        ("[a](https://example.org/absent)", None),
    ],
)
def test_a_broken_link_is_found(tmp_path, text, problem):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.md").touch()
    (root / "other.md").write_text("# Title\n\n## `Two` words\n")
    (root / "page.md").write_text(text)
    assert list(links.broken(root / "page.md", root)) == ([problem] if problem else [])
