"""The course as a whole: one path through the lessons, every exercise checked, every word and link where it should be."""

import html
import inspect
import re
from pathlib import Path

import nbformat
import pytest

from labsupport import exercises, paths

LAB = paths.root()
LESSONS = re.findall(r"^\| \[(\w+)\.ipynb\]", (LAB / "README.md").read_text(), re.MULTILINE)  # in the order of the map
NOTEBOOKS = {path.stem: nbformat.read(path, 4) for path in sorted((LAB / "notebooks").glob("*.ipynb"))}
PAGES = [*LAB.glob("*.md"), *(LAB / "docs").glob("*.md"), *(LAB / "deploy").rglob("*.md"), LAB / "images" / "README.md"]
CHECKS = {name: one for name, one in vars(exercises).items() if isinstance(one, exercises.Exercise)}
OPEN = {name for name, one in vars(exercises).items() if isinstance(one, exercises.OpenExercise)}
CALL = re.compile(r"^exercises\.(\w+)\.check\(", re.MULTILINE)
every_lesson = pytest.mark.parametrize("lesson", LESSONS)


def text(lesson: str) -> str:
    return "\n".join(cell.source for cell in NOTEBOOKS[lesson].cells if cell.cell_type == "markdown")


def headings(lesson: str) -> list[str]:
    return [line.lstrip("# ") for line in text(lesson).splitlines() if line.startswith("#")]


def test_the_map_in_the_readme_names_every_lesson():
    assert {*LESSONS, "template"} == set(NOTEBOOKS)
    assert (*LESSONS[:3], LESSONS[-1]) == ("index", "server", "client", "scale")


def test_the_map_in_the_first_lesson_is_that_of_the_readme():
    """The names in the same order, with the same minutes."""
    row = re.compile(r"^\| \[(\w+)\.ipynb\]\(\S+\) \| .+ \| (\d+) \|$", re.MULTILINE)
    in_the_readme = row.findall((LAB / "README.md").read_text())
    assert row.findall(text("index")) == [one for one in in_the_readme if one[0] != "index"]


@every_lesson
def test_a_lesson_says_what_it_teaches_how_long_it_takes_and_what_comes_next(lesson):
    cells = NOTEBOOKS[lesson].cells
    assert re.search(r"\*\*What we will learn\*\*: ", cells[0].source)
    minutes = int(re.search(r"\*\*Time\*\*: (\d+) minutes", cells[0].source)[1])
    (row,) = [line for line in (LAB / "README.md").read_text().splitlines() if line.startswith(f"| [{lesson}.ipynb]")]
    assert row.endswith(f"| {minutes} |")
    following = LESSONS[LESSONS.index(lesson) + 1 :][:1]
    for name in following:
        assert f"{name}.ipynb" in text(lesson).partition("## Summary")[2]


@every_lesson
def test_every_exercise_has_a_check_which_the_unchanged_start_does_not_pass(lesson):
    asked = re.findall(r"^\*\*★", text(lesson), re.MULTILINE)
    called = [(cell, {*CALL.findall(cell.source)}) for cell in NOTEBOOKS[lesson].cells]
    judged = [cell for cell, names in called if names & {*CHECKS}]
    checked = [cell for cell, names in called if names & {*CHECKS, *OPEN}]
    assert 1 <= len(judged) <= len(asked) <= len(checked)  # an open exercise may have a star, too
    for cell in checked:
        said = "".join(output.get("text", "") for output in cell.outputs)
        assert said.startswith(("Not yet: ", "Not tried yet: ")), (cell.source, said)


def used() -> list[str]:
    sources = [cell.source for lesson in LESSONS for cell in NOTEBOOKS[lesson].cells if cell.cell_type == "code"]
    return CALL.findall("\n".join(sources))


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_belongs_to_one_exercise_and_its_test_passes_a_right_answer(check):
    assert used().count(check) == 1
    tests = "\n".join(path.read_text() for path in (LAB / "tests").glob("test_*.py") if path != Path(__file__))
    own = re.search(rf"(@pytest[^@]*?)?\ndef test_{check}\(.*?(?=\n@pytest|\ndef |\Z)", tests, re.DOTALL)
    row = re.search(rf"_checks\.{check}, [^\n]*\"Right\.\"", tests)
    assert row or (own and "Right." in own[0])
    assert inspect.getdoc(CHECKS[check])


GLOSSARY = re.findall(
    r"^\| \*\*(.+?)\*\* \| .+ \| \[(\w+)\.ipynb\]\(\S+\), (.+) \|$",
    (LAB / "docs" / "glossary.md").read_text(),
    re.MULTILINE,
)


def test_the_glossary_is_in_order_and_visits_every_lesson():
    terms = [term.lower() for term, *_ in GLOSSARY]
    assert terms == sorted(set(terms))
    assert {lesson for _, lesson, _ in GLOSSARY} == set(LESSONS) - {"index"}


@pytest.mark.parametrize("term, lesson, section", GLOSSARY)
def test_a_word_of_the_glossary_happens_where_it_says(term, lesson, section):
    assert section in headings(lesson)
    stem = re.sub(r"(e|es|s|ed|ion|ing)$", "", term.lower().split()[-1].split("/")[-1])
    assert stem in (LAB / "notebooks" / f"{lesson}.ipynb").read_text().lower()


MAP = (LAB / "docs" / "ideas.md").read_text()
IDEAS = [line for line in MAP.splitlines() if line.startswith("|") and not line.startswith(("| Idea |", "|---|"))]


def code_of(lesson: str, number: str) -> list[nbformat.NotebookNode]:
    """Return the code cells below the heading "## number · ..." of a lesson, up to the next heading of that level."""
    inside, cells = False, []
    for cell in NOTEBOOKS[lesson].cells:
        if cell.cell_type == "code":
            cells += [cell] * inside
        elif titles := re.findall(r"^## (.+)", cell.source, re.MULTILINE):
            inside = titles[-1].startswith(f"{number} · ")
    return cells


def shown(output: nbformat.NotebookNode) -> str:
    """Return a cell's output as one line: text, a table without its tags, a caption, or the alt text of a picture."""
    data = output.get("data", {})
    table = html.unescape(re.sub(r"<[^>]+>", " ", data.get("text/html", "")))
    alts = [kind["alt"] for kind in output.get("metadata", {}).values() if "alt" in kind]
    parts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", ""), table, *alts]
    return " ".join(" ".join(parts).split())


@pytest.mark.parametrize("row", IDEAS, ids=lambda row: row.split("|")[1].strip())
def test_an_idea_is_seen_where_the_map_says(row):
    """In that section of the lesson an output holds the phrase. A row that cannot be read fails, too."""
    cells = re.fullmatch(r"\| [^|]+ \| \[(\w+) (\d+)\]\(\.\./notebooks/(\w+)\.ipynb\) \| `([^`]+)` \|", row)
    assert cells, row
    lesson, number, linked, phrase = cells.groups()
    assert lesson == linked
    code = code_of(lesson, number)
    assert code, f"{lesson} has no code in a section {number}"
    assert any(phrase in shown(output) for cell in code for output in cell.outputs), phrase


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(LAB).as_posix())
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("lesson", NOTEBOOKS)
def test_links_in_a_lesson_lead_somewhere(lesson):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(lesson)):
        assert (Path(LAB / "notebooks") / target).exists(), target
