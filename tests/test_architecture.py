"""The house and which way its imports point, read from the source of every module; and that importing does nothing."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = ("run_preprocess", "run_train")
MAX_LINES = 400

TENSORFLOW = ("tensorflow", "tf_keras", "keras", "keras_bert")
WITH_TENSORFLOW = ("pipeline.input_pipeline", "pipeline.record_parser")
WITH_BEAM = tuple(f"pipeline.{name}" for name in ("transforms", "preprocess", "engines", "dask_engine", "local_runner"))
WITH_DASK = "pipeline.dask_engine"  # cannot be imported where Dask is not installed
WITH_LAZY_BEAM = ("pipeline.filesystem", "pipeline.forked_workers", "pipeline.local_worker", "run_preprocess")
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
def imported_at_once(module: str) -> set[str]:
    """Return everything that importing a module imports, through our own modules, without what is lazy."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for imported in imports(waiting.pop()):
            if not imported.lazy and imported.name not in found:
                found.add(imported.name)
                if imported.name in paths():
                    waiting.append(imported.name)
    return found


MODULES = sorted(paths())
PIPELINE = [name for name in MODULES if top(name) == "pipeline"]
MODEL = [name for name in MODULES if top(name) == "model"]


def test_the_walk_finds_what_there_is() -> None:
    assert {"pipeline.errors", "pipeline.transforms", "model.encoder", "run_preprocess"} <= set(MODULES)
    assert Import("apache_beam", False) in imports("pipeline.transforms")
    assert Import("pipeline.preprocess", True) in imports("run_preprocess")
    assert "apache_beam" in imported_at_once("pipeline.preprocess")
    assert "pipeline.errors" in imported_at_once("pipeline.preprocess")


@pytest.mark.parametrize("module", PIPELINE)
def test_pipeline_never_imports_model_and_only_the_reader_tensorflow(module: str) -> None:
    for imported in imports(module):
        assert top(imported.name) not in ("model", "keras_bert", "benchmarks", "tests"), f"{module}: {imported}"
        if module not in WITH_TENSORFLOW:
            assert top(imported.name) not in TENSORFLOW, f"{module}: {imported}"
            # The plan's command measures the reader, which it needs TensorFlow for only then.
            measures_it = module == "pipeline.plan" and imported.lazy
            assert imported.name not in WITH_TENSORFLOW or measures_it, f"{module}: {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_beam_stays_in_its_rooms(module: str) -> None:
    users = [imported for imported in imports(module) if top(imported.name) == "apache_beam"]
    if module in WITH_BEAM:
        return
    if module in WITH_LAZY_BEAM:
        assert all(imported.lazy for imported in users), f"{module} imports Beam at once"
    else:
        assert not users, f"{module} imports Beam"


@pytest.mark.parametrize("module", [name for name in PIPELINE if name not in WITH_BEAM])
def test_rooms_without_beam_do_not_get_it_through_others(module: str) -> None:
    assert "apache_beam" not in {top(name) for name in imported_at_once(module)}


@pytest.mark.parametrize("module", MODEL)
def test_model_never_imports_beam_in_any_way(module: str) -> None:
    reached = imported_at_once(module) | {imported.name for imported in imports(module)}
    assert not reached & set(WITH_BEAM)
    assert "apache_beam" not in {top(name) for name in reached}


def test_errors_import_nothing() -> None:
    assert not imports("pipeline.errors")


@pytest.mark.parametrize("module", ["pipeline.config", "pipeline.schema", "pipeline.labels", "pipeline.tokenization"])
def test_the_rooms_below_know_nothing_of_the_job(module: str) -> None:
    above = {
        "pipeline.transforms",
        "pipeline.preprocess",
        "pipeline.publish",
        "pipeline.shard_writer",
        *WITH_TENSORFLOW,
    }
    assert not imported_at_once(module) & (above | set(WITH_TENSORFLOW))


def test_no_circles() -> None:
    for module in MODULES:
        for imported in {imported.name for imported in imports(module) if not imported.lazy} & set(MODULES):
            assert module not in imported_at_once(imported), f"{module} and {imported} import each other"


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_short(module: str) -> None:
    num_lines = len(paths()[module].read_text(encoding="utf-8").split("\n")) - 1
    assert num_lines < MAX_LINES


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
    modules = ["run_preprocess", *(name for name in PIPELINE if name not in (*WITH_TENSORFLOW, WITH_DASK))]
    assert import_in_a_fresh_process(modules, TENSORFLOW, tmp_path) == "[] 1 []"


def test_a_command_line_is_parsed_before_beam_is_loaded(tmp_path: Path) -> None:
    modules = ["run_preprocess", "pipeline.config", "pipeline.inputs", "pipeline.publish", "pipeline.tokenization"]
    assert import_in_a_fresh_process(modules, ("apache_beam", *TENSORFLOW), tmp_path) == "[] 1 []"
