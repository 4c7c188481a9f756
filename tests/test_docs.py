"""Run every command that README and docs/ show, and compare its output with theirs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
import yaml
from quick import quick

import kdsearch
from kdsearch import methods
from kdsearch.__main__ import main
from kdsearch.cli import app
from kdsearch.space_yaml import parse_space
from kdsearch.study.builtin_spaces import check_space

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "kdsearch"
# Folders of plug-ins: the architecture names the folder, not each file.
PLUGINS = (
    *("methods", "models/students", "models/heads", "study/loggers"),
    *("deploy/formats", "deploy/runtimes", "deploy/targets"),
)
MEMORY = Path("/dev/shm")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GENERATED = ("_generated", "_build")
PAGES = [ROOT / "README.md"] + [
    page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in GENERATED
]
SHORT = DOCS / "reference" / "spaces.md"
# Smaller amounts for a test; they override those of a command.
QUICK: Mapping[str, Mapping[str, str]] = {
    "run": {"--trials": "1", "--epochs": "1", "--teacher-epochs": "1"},
    "distill": {"--epochs": "1", "--teacher-epochs": "1"},
    "check": {"--teacher-epochs": "1"},
}
# `kdsearch run` alone: its budget rejects some students, so that one trial might find none.
FIRST_RUN = {"--budget-ms": "9x"}
FEW = 10  # images of a class that `path/to/images` has in each split
# Pretrained weights are downloaded; a test has no network and trains a teacher instead.
STAND_INS = {"timm:resnet50.a1_in1k": "auto"}
# Lines that are parsed only, by their beginning, and the reason.
NOT_RUN = {
    "kdsearch dashboard": "serves until it is ended; report/test_dashboard.py reads it",
    "kdsearch run --engine ray --ray-address": "needs a cluster; see engines/test_ray_tune.py",
    "kdsearch run --storage postgresql:": "needs a server; study/test_storage_url.py starts one",
}
# Programs that are not part of this project, and why they do not run.
OTHERS = {"ray": "starts a cluster"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block: its language, its lines, and the number of the first."""

    language: str
    lines: tuple[str, ...]
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One command line, its place, and its output on the page."""

    text: str
    place: str
    shown: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return [STAND_INS.get(word, word) for word in shlex.split(self.text, comments=True)]

    @property
    def fails(self) -> bool:
        """Return True if the page shows an error of the command."""
        return any(line.startswith("kdsearch: ") for line in self.shown)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, without directives."""
    inside: list[str] | None = None
    language, begun = "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if inside is None and line.startswith("```"):
            inside, language, begun = [], line.removeprefix("```").strip(), number + 1
        elif inside is not None and line.startswith("```"):
            if not language.startswith("{"):
                yield Block(language=language, lines=tuple(inside), number=begun)
            inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page}: a block is not closed"


def lines(page: Path) -> list[Line]:
    """Return the command lines of a page in order."""
    found: list[Line] = []
    for block in blocks(page):
        if block.language not in ("", "sh", "console"):
            continue
        is_console = block.language == "console"
        text = "\n".join(block.lines).replace("\\\n", " ")
        for line in text.splitlines():
            is_command = line.startswith("$ ") if is_console else line.strip()
            if is_command and not line.startswith("#"):
                place = f"{page.relative_to(ROOT)}, block of line {block.number}"
                found.append(Line(text=line.removeprefix("$ "), place=place))
            elif is_console and line.strip():
                last = found[-1]
                found[-1] = Line(text=last.text, place=last.place, shown=(*last.shown, line))
    return found


def shape(line: str) -> str:
    """Return a line without what differs between machines: numbers, and the trial that wins.

    A row of a table is its number of cells.
    """
    if line.lstrip().startswith("│"):
        return f"a row of {line.count('│') - 1} cells"
    line = re.sub(r"^Lost\b", "Gained", line)
    line = re.sub(r" \(weights of trial \d+\)\s*$", "", line)
    line = re.sub(r"; not within 3 %|; the machine was busy", "", line)
    line = re.sub(r"[━─]+", "-", line)
    line = line.replace("half of the teacher's", "0 times the teacher's")
    line = re.sub(r"[+\u2212-]?\d[\d.,]*", "0", line)
    line = re.sub(r"(0 h )?(0 min )?0 s\b", "0 s", line)
    return " ".join(line.split())


def parse(line: Line) -> None:
    """Let the command's own parser read a line."""
    name, *arguments = line.words[1:]
    assert name in COMMANDS, f"{line.place}: there is no command {name!r}"
    command = COMMANDS[name]
    if "--config" not in arguments:  # whose file is read while parsing
        command.make_context(name, [*arguments])


def shortened(words: list[str]) -> list[str]:
    """Return the arguments of `kdsearch` with small amounts in place of real ones."""
    name, *arguments = words
    if "--config" in arguments:
        return words  # the file has the amounts of a study that was quick
    amounts = dict(QUICK.get(name, {}))
    if words == ["run"]:
        amounts |= FIRST_RUN
    if "--teacher" in arguments and "--teacher-epochs" not in arguments:
        amounts.pop("--teacher-epochs", None)  # it is taken as it is, or refused for that
    return [name, *arguments, *(word for amount in amounts.items() for word in amount)]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """Return a folder with the examples, a few images, and a cache that all pages share."""
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        folder = Path(name)
        shutil.copytree(DOCS / "examples", folder / "examples")
        images = folder / "images"
        script = folder / "examples" / "make_images.py"
        subprocess.run([sys.executable, script, images], check=True, stdout=subprocess.DEVNULL)
        for of_class in images.glob("*/*"):
            for image in sorted(of_class.iterdir())[FEW:]:
                image.unlink()
        (folder / "cache").mkdir()
        yield folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the working folder for the commands of one page, laid out like a checkout."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(prepared / "examples", tmp_path / "docs" / "examples")
    (tmp_path / "path" / "to").mkdir(parents=True)
    shutil.copytree(prepared / "images", tmp_path / "path" / "to" / "images")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".cache").symlink_to(prepared / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)  # `main` takes it over


def typed(line: Line, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a line; return its exit code and all it printed."""
    if line.words[0] == "python":
        program = [sys.executable, *line.words[1:]]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(shortened(line.words[1:]))
    printed = capfd.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out + printed.err


def is_run(line: Line) -> bool:
    """Check a line without running it; return True if it can also run."""
    program, *arguments = line.words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), line.place
        return False
    if program in OTHERS:
        return False
    assert program in ("kdsearch", "python"), f"{line.place}: {program} is not known here"
    if program == "kdsearch":
        parse(line)
    return not any(line.text.startswith(start) for start in NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_parses(page: Path, workplace: Path) -> None:
    for line in lines(page):
        is_run(line)


def test_the_commands_of_a_short_page_do_what_it_shows(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quick():
        check_commands(SHORT, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_print_what_it_shows(
    page: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_commands(page, capfd)


def check_commands(page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for line in lines(page):
        if not is_run(line):
            continue
        code, printed = typed(line, capfd)
        assert (code != 0) == line.fails, f"{line.place}: {line.text}\n{printed}"
        found = {shape(row) for row in printed.splitlines()}
        for row in line.shown:
            assert row == "..." or shape(row) in found, f"{line.place}: {row}\nnot in\n{printed}"


def test_every_exception_is_still_on_a_page() -> None:
    shown = [line for page in PAGES for line in lines(page)]
    for start in NOT_RUN:
        assert any(line.text.startswith(start) for line in shown), start
    words = {word for line in shown for word in shlex.split(line.text, comments=True)}
    assert words >= STAND_INS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_blocks_are_spaces_or_flags(page: Path, workplace: Path) -> None:
    flags = {option for parameter in COMMANDS["run"].params for option in parameter.opts}
    for block in blocks(page):
        if block.language == "yaml":
            text = "\n".join(block.lines)
            found = yaml.safe_load(text)
            if "train" in found or "student" in found:
                parse_space(text, source=f"{page}:{block.number}", check=check_space)
            else:
                assert {f"--{key.replace('_', '-')}" for key in found} <= flags, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_extras_and_local_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"kdsearch\[(\w+)\]", text)) <= set(project["optional-dependencies"])
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_list_every_plugin(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns(*GENERATED))
    out = tmp_path / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", tmp_path / "docs", out],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    commands = (out / "reference" / "commands.html").read_text()
    assert [name for name in COMMANDS if f">kdsearch {name}<" not in commands] == []
    listed = (out / "reference" / "methods.html").read_text()
    assert [name for name in methods.names() if f">{name}<" not in listed] == []


def test_the_architecture_names_every_module_in_its_package() -> None:
    listed = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## Modules")[2]
    sections = {
        title: set(re.findall(r"`(\w+)`", text)) | set(re.findall(r"`(?:\w+/)+(\w+)`", text))
        for title, text in re.findall(r"\*\*([\w ]+)\*\*(.*?)(?=\n\*\*|\Z)", listed, re.DOTALL)
    }
    missing = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if (path.stem == "__main__" or not path.stem.startswith("_"))
        and path.relative_to(PACKAGE).parent.as_posix() not in PLUGINS
        for top in [path.relative_to(PACKAGE).parts[:-1][:1]]
        if path.stem not in sections[top[0] if top else "Top level"]
    ]
    assert missing == []


def test_the_places_that_the_architecture_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    places = re.findall(r"`(\w+(?:/\w+)*\.py)`(?:: `([\w.]+)`)?", text)
    assert len(places) > 30
    for path, name in places:
        source = next((f for f in (ROOT / path, *PACKAGE.rglob(path)) if f.is_file()), None)
        assert source is not None, path
        assert name.rpartition(".")[2] in source.read_text(encoding="utf-8"), (path, name)


@pytest.mark.parametrize("name", sorted(set(methods.names()) - {"none"}))
def test_every_method_names_a_paper(name: str) -> None:
    assert re.search(r"\b(19|20)\d\d\b", methods.get(name).__doc__ or "")


def test_the_files_of_the_project_keep_their_form() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (kdsearch.__version__, "Apache-2.0")
    sizes = [picture.stat().st_size for picture in (DOCS / "images").iterdir()]
    assert len(sizes) <= 3
    assert max(sizes) <= 250_000
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["kdsearch"]
