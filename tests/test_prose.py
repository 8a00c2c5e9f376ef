"""What the prose claims, checked: the README's tree, every command, link and recipe in it."""

import re
import shlex
from pathlib import Path

import pytest

from megatron_medx import cli
from megatron_medx.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")]
OURS = [
    path for folder in ("slurm", "examples", "tools") for path in sorted((ROOT / folder).rglob("*")) if path.is_file()
]
TREE_LINE = re.compile(r"(?P<indent> *)(?P<name>[\w.-][\w./-]*)(?: +(?P<clause>\S.*))?")
LONGEST_CLAUSE = 90
"""Characters; more is a paragraph, not a clause."""


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """Commands of the page's sh blocks, comments kept."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line and not line.startswith("#")]


def tree() -> dict[str, str]:
    """Path relative to the root -> its clause, from the last text block of the README; folders end in a slash."""
    entries, folders = {}, []
    for line in blocks(ROOT / "README.md", "text")[-1].splitlines():
        found = TREE_LINE.fullmatch(line)
        assert found, f"not a line of a tree: {line!r}"
        depth = len(found["indent"]) // 2
        path = "".join(folders[:depth]) + found["name"]
        assert path not in entries, f"{path} stands twice"
        entries[path] = found["clause"] or ""
        if path.endswith("/"):
            folders[depth:] = [found["name"]]
    return entries


def test_the_tree_holds_nothing_that_is_not_there():
    assert not [path for path in tree() if not (ROOT / path).exists()]


def test_the_tree_holds_every_file_of_the_package():
    modules = [path for path in (ROOT / "megatron_medx").rglob("*.py") if path.name != "__init__.py"]
    programs = [path for folder in ("tools", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    scripts = list((ROOT / "slurm").glob("*.sh"))
    folders = [path for path in (ROOT / "megatron_medx").rglob("*") if path.is_dir() and list(path.glob("*.py"))]
    test_folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.rglob("*.py"))]
    needed = [page_id(path) for path in modules + programs + scripts]
    needed += [f"{page_id(path)}/" for path in folders + test_folders]
    assert not sorted(set(needed) - set(tree()))


def test_the_tree_says_one_clause_each():
    inside = {path: clause for path, clause in tree().items() if "/" in path.rstrip("/")}
    assert not [path for path, clause in inside.items() if not clause or len(clause) > LONGEST_CLAUSE]


@pytest.mark.parametrize("line", [line for page in PAGES for line in shell_lines(page) if line.startswith("medx ")])
def test_commands_are_understood(line, capsys):
    """`medx train` is carried out as a dry run; a command whose comment starts with `refused` must be."""
    words = shlex.split(line, comments=True)[1:]
    code = 2 if re.search(r"# refused", line) else 0
    is_recipe = words[0] == "train" and not words[1].endswith(".yaml")
    if is_recipe:
        assert cli.main([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == code
    elif words == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
    else:
        cli._parser().parse_args(words)


@pytest.mark.parametrize("line", [line for page in PAGES for line in shell_lines(page) if "slurm/" in line])
def test_submissions_are_understood(line):
    """The words behind a script of slurm/ are those of the command that it runs."""
    words = shlex.split(line, comments=True)
    at = next(number for number, word in enumerate(words) if word.endswith(".sh"))
    assert (ROOT / words[at]).is_file()
    rest = [word for word in words[at + 1 :] if not word.startswith("--") or not words[at].endswith("pretrain.sh")]
    command = {"convert.sh": ["convert"], "data.sh": ["data", "build"], "pretrain.sh": ["train"]}[Path(words[at]).name]
    cli._parser().parse_args([*command, *rest])


def test_environment_variables_of_ours_are_read_somewhere():
    read = " ".join(path.read_text(encoding="utf-8") for path in OURS if path.suffix in (".sh", ".bash"))
    read += " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "megatron_medx").rglob("*.py"))
    for page in PAGES:
        named = set(re.findall(r"\bMEDX_\w+", page.read_text(encoding="utf-8")))
        assert not {name for name in named if not re.search(rf"\b{name}\b", read)}, page_id(page)


def test_messages_that_a_page_explains_are_said_by_the_code():
    """First cells of the tables `you see`: words in backticks are ours, piece by piece between `...`."""
    sources = [path for path in OURS if path.suffix in (".sh", ".bash")]
    sources += (ROOT / "megatron_medx").rglob("*.py")
    said = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    said = re.sub(r"\"\s*\n\s*f?\"", "", said)  # a text over several lines
    cells, in_table = [], False
    for line in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").splitlines():
        in_table = line.startswith("|") and (in_table or line.startswith("| you see "))
        cells += [line.split("|")[1]] if in_table else []
    pieces = {
        piece.strip(" :") for cell in cells for text in re.findall(r"`([^`]+)`", cell) for piece in text.split("...")
    }
    ours = {piece for piece in pieces if piece and piece not in ("squeue", "medx status")}
    assert len(ours) > 40
    assert not {piece for piece in ours if piece not in said}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_within_sentences_exist(page):
    for words in re.findall(r"`medx ([^`]+)`", page.read_text(encoding="utf-8")):
        first = words.split()[0]
        assert first in cli._parser().format_help(), f"medx {words}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        "#" + re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target in headings
        elif not target.startswith("https://"):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_recipes_that_are_named_exist():
    for path in PAGES + OURS:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:medx train|sbatch \S*pretrain\.sh) ([a-z]\w*)\b(?![./=])", text)
        named += re.findall(r"\bpretrain_\w+\b", text)
        assert set(named) <= set(RECIPES), path
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in RECIPES if not re.search(rf"\b{name}\b", readme)]


def test_files_named_in_prose_exist():
    """Words in backticks that look like paths of the repository: `training/step.py`, `slurm/pretrain.sh`."""
    for page in PAGES:
        for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|sh|env|txt|toml))`", page.read_text(encoding="utf-8")):
            places = (ROOT / name, ROOT / "megatron_medx" / name, page.parent / name)
            assert any(place.exists() for place in places), f"{page_id(page)}: {name}"


def test_nothing_names_a_persons_machine():
    """Home folders and checkouts of whoever wrote it do not belong into the repository."""
    names = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/(?!\*)")
    listed = [path for path in ROOT.iterdir() if path.is_file()]
    listed += [
        path
        for folder in ("megatron_medx", "tests", "slurm", "examples", "tools")
        for path in (ROOT / folder).rglob("*")
    ]
    found = []
    for path in listed:
        if path.suffix in (".py", ".md", ".sh", ".env", ".txt", ".toml", "") and path.is_file():
            found += [page_id(path) for line in path.read_text(encoding="utf-8").splitlines() if names.search(line)]
    assert not found
