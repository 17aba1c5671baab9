"""The project's own promises: floors and pins, files that documents name, no traces of one machine, notebook form."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "docs/measurements.md", "docs/gallery/README.md",
    "notebooks/README.md",
)  # fmt: skip
TOP_FOLDERS = ("workbench", "kernels", "tests", "docs", "benchmarks", "notebooks")
NOTEBOOK_BYTES = 300_000  # a tutorial with its drawings; megabytes mean widget state or a stored script


def requirements(*groups: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for group in groups for line in PROJECT["optional-dependencies"][group])]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def tracked() -> list[Path]:
    """Files of ours: what git tracks, or would (so that the check also works before a commit)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_floors_are_the_promised_ones():
    floors = {r.name: str(r.specifier) for r in requirements()}
    assert PROJECT["name"] == "decoding-workbench" and PROJECT["requires-python"] == ">=3.11"
    assert (floors["torch"], floors["transformers"], floors["triton"]) == (">=2.11", ">=5.17", ">=3.6")
    triton = next(r for r in requirements() if r.name == "triton")
    assert str(triton.marker) == 'sys_platform == "linux"'
    assert {"gradio", "plotly", "anywidget", "ipywidgets", "jupyterlab", "pyarrow"} <= set(floors)


def test_constraints_pin_every_direct_dependency_within_its_bounds():
    """One exact version each, no machine in it: no path, no address, no local build."""
    known = pins()
    for requirement in requirements("test"):
        pin = known[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert requirement.specifier.contains(exact.version), f"{pin} is outside {requirement}"
    for pin in known.values():
        assert pin.url is None and re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin}: expected name==version"


def test_the_version_is_written_once_everywhere():
    import workbench

    assert workbench.__version__ == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_named_in_documents_exist(name):
    """`quoted` paths and relative links; `<name>` marks a file the reader is to write."""
    text = (ROOT / name).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`([\w./-]+)`", prose)
    paths = {p for p in quoted if p.split("/")[0] in TOP_FOLDERS and "/" in p}
    paths |= {p for p in quoted if re.fullmatch(r"[\w.-]+\.(md|toml|txt)", p) and p == p.strip("/")}
    missing = {p for p in paths if not (ROOT / p).exists()}
    links = {p.split("#")[0] for p in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in p}
    missing |= {p for p in links if p and not (ROOT / name).parent.joinpath(p).exists()}
    assert not missing, f"{name} names files that do not exist: {sorted(missing)}"


def test_make_targets_named_in_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for name in DOCUMENTS:
        named = set(re.findall(r"`?\bmake ([a-z]+)[`\n ]", "".join(code(ROOT / name))))
        assert named <= targets, f"{name} names targets that do not exist: {sorted(named - targets)}"


def code(path: Path) -> list[str]:
    """What a Markdown file shows as code, inline or in blocks."""
    text = path.read_text(encoding="utf-8")
    return [part + "\n" for part in re.findall(r"^```.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)] + [
        part + "\n" for part in re.findall(r"`([^`\n]+)`", text)
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/reference.md", "docs/migrating.md", "workbench/__init__.pyi"])
def test_generated_pages_are_current(page):
    """Rendered in a process of its own, so that classes registered by other tests are not on it."""
    script = (
        f"import sys; sys.path.insert(0, 'docs'); import make_reference as m; sys.stdout.write(m.PAGES[{page!r}]())"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (ROOT / page).read_text(encoding="utf-8") == done.stdout, "run `make docs`"


def test_no_file_names_one_machine():
    """Absolute paths of a home or a work folder work for one person only."""
    home = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/[\w.]")
    for path in tracked():
        if path.suffix in (".safetensors", ".png") or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found = home.search(text) if path.name != ".pre-commit-config.yaml" else None
        assert found is None, f"{path.relative_to(ROOT)}: {text[found.start() : found.start() + 40]!r}"


def test_no_large_files_but_the_models():
    for path in tracked():
        limit = 30_000_000 if path.suffix == ".safetensors" else 1_500_000
        assert path.stat().st_size < limit, f"{path.relative_to(ROOT)} has {path.stat().st_size} bytes"


def test_kernels_is_no_import_package():
    """An `__init__.py` there would shadow a library that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_trace_and_views_import_no_torch():
    """Reading and drawing a trace must stay quick and work where no model runs."""
    script = (
        "import sys, workbench, workbench.trace, workbench.views, workbench.conditions; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr[-2000:]


def test_no_test_sets_the_clock_of_the_whole_process():
    """Loops and threads of other tests run on it, too: name the module that is to see another one."""
    wrong = re.compile(r"setattr\((\w+\.)?time, ")
    assert not [file for file in (ROOT / "tests").rglob("*.py") if wrong.search(file.read_text())]


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_clean(path):
    """nbval compares nothing in a cell that was never executed: such a notebook would pass while checking nothing."""
    raw = path.read_text(encoding="utf-8")
    notebook = json.loads(raw)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run `make notebooks`"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert "widgets" not in notebook["metadata"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any(output["output_type"] != "display_data" for output in outputs), "nothing is compared in this notebook"
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", f"a warning is stored: {output['text']}"
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    assert not re.search(r"(?:/(?:home|Users|root|tmp|work)/|[A-Z]:\\\\)[\w.]", raw), "an absolute path"
    assert not re.search(r"NBVAL_(?:SKIP|IGNORE_OUTPUT|RAISES_EXCEPTION)", raw), "a cell that is not compared"
    assert not re.search(r"^[\s\"]*[%!]\s*pip", raw, flags=re.MULTILINE), "an install cell"
    assert path.stat().st_size < NOTEBOOK_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_one_widget_and_end_in_two_exercises_and_a_link(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    (shown,) = [cell for cell in cells if cell["cell_type"] == "code" and ".widget()" in "".join(cell["source"])]
    saved = "".join(shown["outputs"][0]["data"]["text/html"])  # what stands there without a kernel
    assert "<pre" in saved and "data:image/svg+xml" in saved
    tasks, last = re.search(r"^## Exercises\n(.*)\n\n(Next: .*)\Z", texts[-1], flags=re.MULTILINE | re.DOTALL).groups()
    assert re.findall(r"^(\d+)\. ", tasks, flags=re.MULTILINE) == ["1", "2"] and "\n\n" not in tasks
    names = [*(notebook.name for notebook in NOTEBOOKS), "README.md"]
    assert "\n" not in last and f"]({names[names.index(path.name) + 1]})" in last
    assert texts[0].endswith("[All notebooks](README.md)")
    for link in re.findall(r"\]\(([^)#\s]+)", "\n".join(texts)):
        assert "://" in link or (path.parent / link).exists(), link
