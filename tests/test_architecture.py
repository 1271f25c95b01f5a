"""Which way imports point, read from the source of every module; and that importing a module does nothing."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = ("run_preprocess", "run_train")
# What each package, or module beside the packages, may import: what has a smaller number, and what is in itself.
LAYERS = {
    "pipeline.errors": 0,
    "pipeline": 1,  # its base modules: command_line, filesystem
    "pipeline.sample_corpus": 2,
    "pipeline.dataset": 2,
    "pipeline.tokenization": 3,
    "pipeline.corpus": 4,
    "pipeline.engines": 5,
    "pipeline.job": 6,
    "pipeline.verify": 7,
    "pipeline.input_pipeline": 8,
    "pipeline.inspect": 9,
    "pipeline.plan": 9,
    "run_preprocess": 10,
    "model": 20,  # its base modules: config, decoding, files
    "model.bert": 21,
    "model.classifier": 22,
    "model.run": 23,
    "model.report": 24,
    "model.training": 25,
    "model.serving": 26,
    "model.evaluate": 27,
    "model.predict": 27,
    "model.export": 27,
    "model.sample_bert": 27,
    "model.trainer": 28,
    "run_train": 29,
}

TENSORFLOW = ("tensorflow", "tf_keras", "keras", "keras_bert")
WITH_TENSORFLOW = ("pipeline.input_pipeline", "model", "run_train")
WITH_BEAM = ("pipeline.job", "pipeline.engines")
WITH_LAZY_BEAM = ("pipeline.filesystem", "run_preprocess")
# The plan's command measures the reader, for which alone it needs TensorFlow.
WITH_LAZY_TENSORFLOW = ("pipeline.plan",)
WITH_DASK = "pipeline.engines.dask"  # cannot be imported where Dask is not installed
# What a dataset, a run directory or a BERT directory holds is data: nothing may turn it into code.
EXECUTING_MODULES = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
EXECUTING_CALLS = ("eval", "exec", "compile", "__import__")
# Of these, Keras and TensorFlow make code of what a file says; shells and subprocesses speak for themselves.
EXECUTING_METHODS = ("load_model", "model_from_json", "Lambda", "unsafe_load", "full_load", "system", "popen", "Popen")


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        name: the module, by its full name.
        lazy: whether it stands inside a function, so that it is imported only when that runs.
    """

    name: str
    lazy: bool


@cache
def paths() -> dict[str, Path]:
    """Return module name → file of everything that is installed, and of the commands."""
    found = {name: REPOSITORY / f"{name}.py" for name in COMMANDS if (REPOSITORY / f"{name}.py").exists()}
    for package in ("pipeline", "model"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(paths()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[Import]:
    """Return everything a module imports, wherever the import stands."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import in line {node.lineno}"
            assert node.module
            for alias in node.names:
                # `from pipeline import filesystem` imports a module, `from pipeline.errors import OptionError` a name.
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in paths() else node.module, lazy)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        else:
            inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)

    return frozenset(visit(tree(module), False))


def top(name: str) -> str:
    return name.split(".")[0]


@cache
def imported_at_once(module: str, *, with_packages: bool = True) -> set[str]:
    """Return everything that importing a module imports, through our own modules, without what is lazy.

    Args:
        module: where to begin.
        with_packages: whether importing a.b.c counts as importing a and a.b first, as it does.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for imported in imports(waiting.pop()):
            if not imported.lazy and imported.name not in found:
                parts = imported.name.split(".")
                first = 1 if with_packages else len(parts)
                added = {".".join(parts[:length]) for length in range(first, len(parts) + 1)} - found
                found |= added
                waiting += sorted(added & set(paths()))
    return found


MODULES = sorted(paths())
PIPELINE = [name for name in MODULES if top(name) == "pipeline"]


def test_the_walk_finds_what_there_is() -> None:
    assert {"pipeline.errors", "pipeline.job.transforms", "model.bert.encoder", "run_preprocess"} <= set(MODULES)
    assert Import("apache_beam", False) in imports("pipeline.job.transforms")
    assert Import("pipeline.job.preprocess", True) in imports("run_preprocess")
    assert "apache_beam" in imported_at_once("pipeline.job.preprocess")
    assert "pipeline.errors" in imported_at_once("pipeline.job.preprocess")


def is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def package_of(module: str) -> str:
    """Return the longest name in LAYERS that a module is, or is in."""
    return max((name for name in LAYERS if is_in(module, [name])), key=len)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_packages_below_its_own(module: str) -> None:
    own = package_of(module)
    for imported in imports(module):
        if imported.name in paths() and imported.name != "pipeline":  # of which VERSION is imported
            package = package_of(imported.name)
            assert package == own or LAYERS[package] < LAYERS[own], f"{module} imports {imported.name}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_benchmarks_or_tests(module: str) -> None:
    assert not {top(imported.name) for imported in imports(module)} & {"benchmarks", "tests"}


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_stays_below_the_input_pipeline_and_model(module: str) -> None:
    if is_in(module, WITH_TENSORFLOW):
        return
    assert not {top(name) for name in imported_at_once(module)} & set(TENSORFLOW)
    lazily = {top(imported.name) for imported in imports(module)} & set(TENSORFLOW)
    assert not lazily or module in WITH_LAZY_TENSORFLOW


@pytest.mark.parametrize("module", MODULES)
def test_beam_stays_below_job_and_engines(module: str) -> None:
    if is_in(module, WITH_BEAM):
        return
    assert "apache_beam" not in {top(name) for name in imported_at_once(module)}
    lazily = [imported for imported in imports(module) if top(imported.name) == "apache_beam"]
    assert not lazily or module in WITH_LAZY_BEAM


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) in ("model", "run_train")])
def test_model_never_imports_beam_in_any_way(module: str) -> None:
    assert not any(is_in(imported.name, WITH_BEAM) for imported in imports(module))


def test_errors_import_nothing() -> None:
    assert not imports("pipeline.errors")


def test_no_folder_has_more_than_fourteen_entries() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    entries: dict[str, set[str]] = {}
    for path in listed.splitlines():
        parts = path.split("/")
        if parts[0] in ("pipeline", "model"):
            for depth in range(1, len(parts)):
                entries.setdefault("/".join(parts[:depth]), set()).update({parts[depth]} - {"__init__.py"})
    assert {folder: len(names) for folder, names in entries.items() if len(names) > 14} == {}


def test_no_circles() -> None:
    for module in MODULES:
        for imported in {imported.name for imported in imports(module) if not imported.lazy} & set(MODULES):
            reached = imported_at_once(imported, with_packages=False)
            assert module not in reached, f"{module} and {imported} import each other"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_turns_data_into_code(module: str) -> None:
    for imported in imports(module):
        assert top(imported.name) not in EXECUTING_MODULES, f"{module}: {imported}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in EXECUTING_CALLS, f"{module}, line {node.lineno}: {node.func.id}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in EXECUTING_METHODS, f"{module}, line {node.lineno}: {node.func.attr}"
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, f"{module}, line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"{module}: allow_pickle in line {node.value.lineno}"
            assert node.value.value is False, f"{module}: allow_pickle in line {node.value.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_body_only_defines(module: str) -> None:
    """Imports, definitions, constants and the guard of a command; no statement that does something."""
    for node in tree(module).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING"):
            continue
        if module == "model" and ast.unparse(node).startswith("os.environ.setdefault('TF_"):
            continue  # it must be said before TensorFlow is imported, by whoever imports it first
        allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        assert isinstance(node, allowed), f"{module}, line {node.lineno}: {ast.unparse(node)[:80]}"


WATCH = """
import importlib, os, sys, threading
for name in {modules!r}:
    importlib.import_module(name)
loaded = sorted(set({forbidden!r}) & set(sys.modules))
print(loaded, threading.active_count(), os.listdir("."))
"""


def import_in_a_fresh_process(modules: list[str], forbidden: tuple[str, ...], directory: Path) -> str:
    code = WATCH.format(modules=modules, forbidden=forbidden)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=directory,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_importing_the_preprocessing_side_loads_no_tensorflow_and_does_nothing(tmp_path: Path) -> None:
    without = ("pipeline.input_pipeline", WITH_DASK)
    modules = ["run_preprocess", *(name for name in PIPELINE if not is_in(name, without))]
    assert import_in_a_fresh_process(modules, TENSORFLOW, tmp_path) == "[] 1 []"


def test_a_command_line_is_parsed_before_beam_is_loaded(tmp_path: Path) -> None:
    modules = ["run_preprocess", "pipeline.job.config", "pipeline.corpus.inputs", "pipeline.tokenization"]
    assert import_in_a_fresh_process(modules, ("apache_beam", *TENSORFLOW), tmp_path) == "[] 1 []"
