"""What the documentation says is true: examples run, tables are the code's answers, links and commands exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import regard
from regard import masks, positions
from tests import write_reference
from tests.write_reference import BACKENDS, CASES, ROOT, Case

README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
READMES = [README, CHINESE]
PAGES = [*READMES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FILES = [*PAGES, ROOT / "LICENSE"]
SECTIONS = ["1.1", "1.2", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "5"]
PICTURE_BYTES = 300_000

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
# Files as the texts name them: from the root of the repository, in backticks.
NAMED_FILE = re.compile(r"`((?:src|tests|docs|csrc)/[^`\s]*)`")
HOSTS = (
    "pypi.",
    "pythonhosted",
    "anaconda.org",
    "npmjs",
    "huggingface.co",
    "pytorch.org",
    "localhost",
    "file://",
    "mirror",
)
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/\])])/(?:home|root|usr|tmp|var|opt|etc|mnt|srv|work|workspace|Users)\b|[A-Z]:\\")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
both_readmes = pytest.mark.parametrize("readme", READMES, ids=page_name)


@dataclass(frozen=True)
class Example:
    """A python block, and the text block that says what it prints, if one follows."""

    name: str
    code: str
    prints: str | None


def examples(path: Path) -> list[Example]:
    blocks = FENCE.findall(read(path))
    found = []
    for index, (language, code) in enumerate(blocks):
        after = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
        if language == "python":
            found.append(Example(f"{path.name}-{index}", code, after[1] if after[0] == "text" else None))
    return found


# ------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize("example", [*examples(README), *examples(CHINESE)], ids=lambda example: example.name)
def test_examples_run_and_print_what_is_said(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example.code, example.name, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    printed = capsys.readouterr().out
    assert example.prints is None or printed == example.prints
    assert list(tmp_path.iterdir()) == []


@both_readmes
def test_the_first_example_has_ten_lines_at_most(readme):
    shown = examples(readme)
    assert len(shown) >= 2
    assert len(shown[0].code.strip().splitlines()) <= 10


# --------------------------------------------------------------------------------- two READMEs, alike


def without_comments(code: str) -> str:
    return re.sub(r"\s*#.*", "", code)


def structure(path: Path) -> dict[str, object]:
    text = read(path)
    prose = FENCE.sub("", text)
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "columns of each table row": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
        "list entries": len(re.findall(r"^- ", prose, re.MULTILINE)),
        "code": [(language, without_comments(code)) for language, code in FENCE.findall(text)],
        "pictures": re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose),
        "options and code names in tables": [
            sorted(re.findall(r"`[^`]+`", line)) for line in prose.splitlines() if line.startswith("|")
        ],
    }


@pytest.mark.parametrize("part", structure(README))
def test_the_readmes_have_the_same_structure(part):
    assert structure(CHINESE)[part] == structure(README)[part]


def test_the_chinese_readme_is_chinese():
    for line in FENCE.sub("", read(CHINESE)).splitlines():
        prose = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*-->", "", line)
        assert len(re.findall(r"[A-Za-z]{2,} +[A-Za-z]{2,} +[A-Za-z]{2,} +[a-z]{2,}", prose)) == 0, line


@both_readmes
def test_both_commands_and_what_they_write_are_named(readme):
    for told in ("`make xray`", "`make test`", "out/xray/report.html", "out/xray/report.json"):
        assert told in read(readme)


@every_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    assert set(COMMAND.findall(read(page))) <= targets


# ------------------------------------------------------------------------------------ names and options


@pytest.mark.parametrize("module", [regard, masks, positions], ids=lambda module: module.__name__)
def test_every_public_name_is_told_of(module):
    told = "\n".join(read(page) for page in [*READMES, *(ROOT / "docs").rglob("*.md")])
    missing = [name for name in module.__all__ if not re.search(rf"`{re.escape(name)}\b", told)]
    assert missing == []


@pytest.mark.parametrize("path", write_reference.written(), ids=page_name)
def test_what_is_written_from_the_code_is_up_to_date(path):
    assert read(path) == write_reference.written()[path], "run `python -m tests.write_reference`"


@both_readmes
def test_every_option_of_xray_is_told_of(readme, monkeypatch, capsys):
    from regard.cli import main

    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["xray", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert {"--text", "--json"} <= options
    # The negative forms are cyclopts' own addition.
    wanted = {option for option in options if not option.startswith(("--empty-", "--no-"))}
    assert wanted - set(re.findall(r"`(--[a-z-]+)`", read(readme))) == set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.en.replace("`", ""))
def test_every_cell_of_the_table_of_backends(case: Case, backend: str):
    problem = case.problem()
    if case.answers()[backend].status == "refused":
        with pytest.raises(regard.UnsupportedError):
            regard.attention(**problem, backend=backend)
        return
    output = regard.attention(**problem, backend=backend)
    wants_lse = problem.pop("return_lse", False)
    output = output[0] if wants_lse else output
    exact = regard.reference.attention(**problem).output
    tolerance = 1e-5 if output.dtype in (torch.float32, torch.float64) else 2e-2
    torch.testing.assert_close(output, exact, atol=tolerance, rtol=tolerance, equal_nan=True)


def test_the_table_has_a_column_for_every_backend():
    from regard.backends import BACKENDS as EXISTING

    assert set(BACKENDS) == {backend.name for backend in EXISTING}


# ---------------------------------------------------------------------------------- links, files, guide


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(read(page)):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not heading or heading in anchors(path), target


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_files_named_in_the_text_exist(page):
    planned = ("csrc/",)
    for name in NAMED_FILE.findall(read(page)):
        assert name.startswith(planned) or (ROOT / name).exists(), name


@both_readmes
def test_the_guide_table_has_every_section_and_says_where_or_not_yet(readme):
    rows = re.findall(r"^\| (\d(?:\.\d)?) [^|]*\| ([^|]*) \|$", read(readme), re.MULTILINE)
    assert list(dict.fromkeys(section for section, _ in rows)) == SECTIONS
    for section, here in rows:
        named = NAMED_FILE.findall(here)
        assert named or "not yet" in here or "尚无" in here, section
        # `src/regard/masks/`: `window.py` names a file in the folder before it.
        inside = [name for name in re.findall(r"`(\w+\.py)`", here) if not (ROOT / named[0] / name).exists()]
        assert inside == []


def test_the_architecture_names_every_room():
    text = read(ROOT / "ARCHITECTURE.md")
    rooms = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "src" / "regard").iterdir()
        if not path.name.startswith("__pycache__") and path.suffix in ("", ".py")
    ]
    assert len(rooms) > 10
    assert [room for room in rooms if f"| `{room}` |" not in text] == []


def test_the_version_of_the_changelog():
    headings = re.findall(
        r"^## \[([^\]]+)\] - (unreleased|\d{4}-\d{2}-\d{2})$", read(ROOT / "CHANGELOG.md"), re.MULTILINE
    )
    assert headings[0][0] == regard.__version__


@pytest.mark.parametrize("path", FILES, ids=page_name)
def test_no_registry_host_and_no_absolute_path(path):
    text = read(path)
    assert [host for host in HOSTS if host in text.lower()] == []
    assert ABSOLUTE_PATH.findall(text) == []


@pytest.mark.parametrize("text", ["see /home/me", "`/usr/bin/x`", "(/tmp/y)", "C:\\x"])
def test_an_absolute_path_would_be_seen(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.png")), ids=page_name)
def test_pictures_are_small_and_shown(picture):
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) < PICTURE_BYTES
    assert all(f"docs/{picture.name}" in read(readme) for readme in READMES)


def test_the_licence_is_apache_2():
    text = read(ROOT / "LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert 'license = "Apache-2.0"' in read(ROOT / "pyproject.toml")
