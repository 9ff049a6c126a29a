"""Links between the documents of the repository: each leads to a file, and to a heading in it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)


def list_documents() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def list_anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        numbered = [anchor, *(f"{anchor}-{count}" for count in range(1, 20))]
        anchors.add(next(name for name in numbered if name not in anchors))
    return anchors


def find_broken_links(path: Path) -> list[str]:
    """The links of a document that lead to no file, or to no heading of one."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = path.parent / name if name else path
        if not (target.exists() and (not anchor or has_anchor(target, anchor))):
            broken.append(link)
    return broken


def has_anchor(document: Path, anchor: str) -> bool:
    return anchor in list_anchors(document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", list_documents())
def test_links_of_a_document_lead_somewhere(name: str) -> None:
    assert find_broken_links(ROOT / name) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# Two `words`, [linked](x.md)\n\n```sh\n# no heading\n```\n\n## Same\n\n## Same\n"
    )
    document = tmp_path / "document.md"
    document.write_text(
        "[a](other.md#two-words-linked) [b](other.md#same-1) [c](https://x.org/#y)\n"
        "[d](absent.md) [e](other.md#no-heading) [f](#here) [g](other.md#same-2)\n"
    )
    assert find_broken_links(document) == [
        *("absent.md", "other.md#no-heading", "#here", "other.md#same-2")
    ]
