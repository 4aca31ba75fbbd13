"""The code of the README and the guide pages runs as it stands, prints what the pages say that it
prints, and their links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *GUIDES]

#: A block of code, and what it prints, where the page says so.
_BLOCK = re.compile(r"^```python\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
_LOOSE = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def test_the_example_runs_and_stays_within_its_budget(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1, 11)]
    assert names["record"].dp["epsilon"] <= 3.0 and lines[-1].endswith("simulation")
    names["federation"].close()


def test_the_simulations_example_runs(capsys):
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("30 20 ")


@pytest.mark.parametrize(
    "page", [page for page in GUIDES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_a_guides_code_prints_what_the_page_says(page, capsys):
    """Line breaks may differ, and `...` stands for anything; nothing else may."""
    names: dict = {"__name__": "__main__"}
    blocks = _BLOCK.findall(page.read_text())
    assert len(blocks) == page.read_text().count("```python")
    for code, said in blocks:
        exec(compile(code, page.name, "exec"), names)
        printed = capsys.readouterr().out
        same = doctest.OutputChecker().check_output(said, printed, _LOOSE)
        assert same, f"{page.name} says\n{said}\nbut\n{code}\nprints\n{printed}"


def test_links_lead_to_files_and_headings():
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text()):
            if target.startswith("http"):
                continue
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                assert heading in anchors, f"{page.name}: {target}#{heading}"
