"""Rules of the code base that no linter knows."""

from __future__ import annotations

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "common", "server", "simulations")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# X.509 and OpenSSH keys are formats of their own, for the transport alone: nothing that our protocol signs uses them
CRYPTOGRAPHY_ROOMS = {
    "common/crypto/primitives.py",
    "common/crypto/certificates.py",
}
# the gate stands between Flower and the bundles that it is sent; a SuperNode's process is Flower's program with an
# end to it; the benchmark measures Flower's own masking beside ours
FLOWER_ROOMS = {
    "client/app.py",
    "client/connection/bundle_gate.py",
    "client/connection/supernode_process.py",
    "server/app.py",
    "server/rounds/transport.py",
    "simulations/bench/fleet.py",
    "simulations/bench/secagg.py",
}


# a file that has to last is made by one room; the vault's blobs force each to disk and their folder once a change
DURABLE_ROOMS = {"common/durable_files.py", "client/vault/blobs.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def runtime_imports(tree: ast.Module) -> set[str]:
    """Names of modules imported when the code runs, not only when it is type-checked."""
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno + 1 > 50
    ]
    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_flower_and_cryptography_keep_to_their_rooms(path: Path) -> None:
    imported = runtime_imports(ast.parse(path.read_text()))
    name = name_of(path)
    if name not in FLOWER_ROOMS and not name.startswith("simulations/engines/"):
        assert not {module for module in imported if module.split(".")[0] == "flwr"}
    if name not in CRYPTOGRAPHY_ROOMS:
        assert not {module for module in imported if module.split(".")[0] == "cryptography"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_that_survive_a_crash_are_made_in_one_room(path: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not used & {"O_EXCL", "fsync", "fdatasync"} or name_of(path) in DURABLE_ROOMS


def without_encoding(tree: ast.Module) -> list[str]:
    """Calls that read or write text in whatever encoding the machine happens to have."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "encoding" not in {each.arg for each in node.keywords} and is_text(node)
    ]


def is_text(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    if any(each.arg in {"text", "universal_newlines"} for each in call.keywords):
        return name in {"run", "Popen", "check_output"}
    if name in {"read_text", "write_text"}:
        return len(call.args) < (1 if name == "read_text" else 2)
    modes = [each.value for each in (*call.args, *(k.value for k in call.keywords)) if isinstance(each, ast.Constant)]
    is_mode = [each for each in modes if isinstance(each, str) and 0 < len(each) <= 3 and set(each) <= set("rwaxbt+")]
    return name in {"open", "fdopen"} and any("b" not in each for each in is_mode)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_text_is_read_and_written_in_an_encoding_that_is_named(path: Path) -> None:
    assert without_encoding(ast.parse(path.read_text(encoding="utf-8"))) == []


def patterns(tree: ast.Module) -> list[str]:
    """Every ``pattern=`` of a call, as its source says it."""
    return [
        ast.unparse(word.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "pattern"
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_pattern_of_a_field_ends_where_the_text_does(path: Path) -> None:
    """``$`` lets one newline follow: a second spelling of a key, a digest or a name, which signatures do not notice."""
    ends = [each for each in patterns(ast.parse(path.read_text())) if each != "pattern"]
    assert [each for each in ends if not each.rstrip("'\"").endswith(r"\\Z")] == []


def entries(folder: Path) -> list[str]:
    """Modules and folders, such as a person sees who opens this one."""
    hidden = {"__init__.py", "__pycache__"}
    return [
        each.name for each in folder.iterdir() if each.name not in hidden and (each.is_dir() or each.suffix == ".py")
    ]


def test_a_stranger_meets_few_rooms_at_a_time() -> None:
    assert sum(len(entries(ROOT / package)) for package in PACKAGES) <= 50
    folders = {path.parent for path in SOURCES}
    assert {name_of(folder): len(entries(folder)) for folder in folders if len(entries(folder)) > 16} == {}


def imports() -> dict[str, set[str]]:
    """What each module imports of our own: at its top, inside functions, or for its annotations alone."""
    modules = {name_of(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = (names & modules.keys()) - {module}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter(imports())
    order.prepare()  # raises CycleError, which names one


def test_no_layer_imports_one_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts of ``[tool.importlinter]``, which every package inside ``client`` has to have a place in."""
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)  # it would silence loggers that other tests read
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_room_is_named_for_nothing_in_particular() -> None:
    banned = {"utils", "util", "helpers", "helper", "misc", "task", "common_utils"}
    assert not [name_of(path) for path in SOURCES if path.stem in banned]


def test_the_bundle_is_an_allow_list_of_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["flwr"]["app"]["fab-include"]
    shipped = {name_of(path) for pattern in included for path in ROOT.glob(pattern)}
    assert {"client/__init__.py", "client/app.py", "server/app.py", "common/wire/messages.py"} <= shipped
    # the steward, its ledger and its data never travel in a bundle that the coordinator chooses
    assert {name for name in shipped if name.startswith("client/")} == {"client/__init__.py", "client/app.py"}
    assert not {name for name in shipped if name.startswith(("simulations/", "tests/"))}
    assert all(name.endswith(".py") or name == "LICENSE" for name in shipped)


def test_the_project_is_not_uploaded_by_accident() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
