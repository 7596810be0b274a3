"""The import directions of the architecture, read from the sources."""

import ast
import contextlib
import sys
from pathlib import Path

import pytest
from helpers import ROOT, python

import brainslices

PACKAGES = ("brainslices", "vqvae", "pixelcnn", "tuning")
MAY_IMPORT = {
    "brainslices": {"brainslices"},
    "vqvae": {"vqvae", "brainslices"},
    "pixelcnn": {"pixelcnn", "brainslices"},
    "tuning": {"tuning", "vqvae", "pixelcnn", "brainslices"},
    "scripts": {"tuning", "vqvae", "pixelcnn", "brainslices"},
}
# Inside brainslices: what each subpackage may import besides itself; "" are the top modules.
MAY_IMPORT_INSIDE = {
    "": set(),
    "runs": {""},
    "distributed": {""},
    "data": {"", "runs"},
    "evaluation": {"", "runs", "data"},
    "visualization": {"", "runs", "data"},
    "studio": {"", "runs", "distributed", "data", "evaluation", "visualization"},
    "training": {"", "runs", "distributed", "data", "evaluation", "visualization"},
    "report": {"", "runs", "data", "evaluation", "visualization"},
}
# Besides scripts/: the package of a run's kind, and what a child process is to call.
IMPORT_BY_NAME = {"brainslices/runs/loading.py", "tuning/workers.py"}
# Documented in spite of their underscore: named tuples, leaving a process, typeshed's stubs.
DOCUMENTED_PRIVATE = {"_replace", "_asdict", "_fields", "os._exit", "_typeshed"}
# Only inside functions: the JAX backend works without TensorFlow, and --help stays fast.
NEVER_AT_TOP = {"tensorflow", "tensorflow_probability", "jax", "tensorboard"}
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")


def imported(nodes):
    """Yield the full names of the modules and members in import statements."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def import_time_nodes(tree):
    """Yield the statements that run when the module is imported: all outside of functions."""
    queue = list(tree.body)
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)


def name(path):
    return str(path.relative_to(ROOT))


def test_there_are_sources():
    assert {path.parts[len(ROOT.parts)] for path in SOURCES} >= {
        "brainslices",
        "vqvae",
        "pixelcnn",
        "scripts",
    }


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    modules = list(imported(ast.walk(ast.parse(path.read_text()))))
    assert not [module for module in modules if module.startswith(".")], "imports are absolute"
    ours = {module.split(".")[0] for module in modules} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package]


def subpackage(parts):
    """Subpackage of brainslices that holds a module, given the parts of its path or name."""
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT_INSIDE else ""


@pytest.mark.parametrize("path", sorted((ROOT / "brainslices").rglob("*.py")), ids=name)
def test_imports_inside_brainslices_point_one_way(path):
    own = subpackage(path.relative_to(ROOT).parts)
    modules = set(imported(ast.walk(ast.parse(path.read_text()))))
    parts = [module.split(".") for module in modules]
    used = {subpackage(names) for names in parts if names[0] == "brainslices"}
    assert used - {own} <= MAY_IMPORT_INSIDE[own]
    lazy = {f"brainslices.{exported}" for exported in (*brainslices.__all__, "*")}
    assert not modules & {"brainslices", *lazy}, "import from the module that defines the name"


def is_private(identifier):
    return identifier.startswith("_") and not identifier.startswith("__")


def annotation_strings(tree):
    """Yield the syntax trees of annotations that are strings."""
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    with contextlib.suppress(SyntaxError):  # a member of a Literal
                        yield ast.parse(part.value)


def defined_names(tree):
    """Yield the names and attributes that a module defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def private_names(tree, own):
    """Yield the private names of other packages that a module uses; `own` are those of ours."""
    nodes = [node for part in (tree, *annotation_strings(tree)) for node in ast.walk(part)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            is_own = owner in ("self", "cls", "super()") and node.attr in own
            if not is_own and not {node.attr, f"{owner}.{node.attr}"} & DOCUMENTED_PRIVATE:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            attribute = node.args[1]
            if isinstance(attribute, ast.Constant) and is_private(attribute.value):
                yield ast.unparse(node)
    for module in imported(nodes):
        package, *parts = module.split(".")
        parts += [] if package in DOCUMENTED_PRIVATE else [package]
        if any(is_private(part) or part == "src" for part in parts):
            yield module


@pytest.fixture(scope="module")
def own_names():
    """Names that the sources outside `compat` modules define."""
    trees = (ast.parse(path.read_text()) for path in SOURCES if path.name != "compat.py")
    return {defined for tree in trees for defined in defined_names(tree)}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_private_names_of_other_packages_are_used_in_compat_modules_only(path, own_names):
    """An upgrade of a package may change them; the `compat` modules have tests for each."""
    names = list(private_names(ast.parse(path.read_text()), own_names))
    assert not names or path.name == "compat.py"


@pytest.mark.parametrize(
    "source",
    [
        "optimizer._slots",
        "self._trainable_variables",
        "self.model._tracker",
        "getattr(model, '_layers')",
        "def save(digest: 'hashlib._Hash'): ...",
        "def save() -> 'list[hashlib._Hash]': ...",
        "from keras.src import backend",
        "from keras import src",
        "import keras.src.backend",
        "def build():\n    from numpy import _core",
    ],
)
def test_private_name_is_found(source):
    assert list(private_names(ast.parse(source), {"_own"}))


@pytest.mark.parametrize(
    "source", ["self._own", "super()._own()", "state._replace(row=1)", "os._exit(1)", "f.__name__"]
)
def test_own_and_documented_names_are_not_private_names_of_other_packages(source):
    assert not list(private_names(ast.parse(source), {"_own"}))


def test_modules_are_imported_by_a_computed_name_only_where_listed():
    """The other tests of this file do not see such imports."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            used = {getattr(node, field, None) for field in ("id", "attr", "name")}
            if used & {"import_module", "__import__"} and path.parent.name != "scripts":
                found.add(name(path))
    assert found == IMPORT_BY_NAME


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_backends_are_imported_inside_functions(path):
    modules = imported(import_time_nodes(ast.parse(path.read_text())))
    roots = {module.split(".")[0] for module in modules}
    if path.name == "distribution.py":  # it subclasses one of TensorFlow Probability
        roots -= {"tensorflow", "tensorflow_probability"}
    assert not roots & NEVER_AT_TOP


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent.name != "scripts"], ids=name
)
def test_modules_have_a_docstring_and_all(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for assigned in node.targets
        for target in ast.walk(assigned)
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names


MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 45, 7


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_files_functions_and_argument_lists_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name
            lists = node.args.posonlyargs, node.args.args, node.args.kwonlyargs
            arguments = {argument.arg for arguments in lists for argument in arguments}
            assert len(arguments - {"self"}) <= MAX_ARGUMENTS, node.name


HELP = """
import io, runpy, sys
from contextlib import redirect_stdout

for path in sys.argv[1:]:
    sys.argv, printed, status = [path, "--help"], io.StringIO(), 0
    try:
        with redirect_stdout(printed):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    heavy = {"tensorflow", "keras", "jax", "matplotlib", "scipy", "skimage", "nibabel"}
    has_usage = "usage" in printed.getvalue().lower()
    print(path, status or 0, has_usage, sorted(heavy & set(sys.modules)))
"""


def test_help_imports_nothing_heavy():
    ran = python("-c", HELP, *SCRIPTS)
    assert ran.stdout.splitlines() == [f"{path} 0 True []" for path in SCRIPTS], ran.stderr


def test_configurations_and_packages_import_no_backend():
    """Other processes unpickle configurations before the logs of the backend are suppressed."""
    modules = [*PACKAGES, *(f"{package}.config" for package in PACKAGES), "benchmarks.harness"]
    code = f"import sys, {', '.join(modules)}; print('keras' in sys.modules)"
    ran = python("-c", code)
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr


def test_names_of_the_packages_exist():
    import pixelcnn
    import tuning
    import vqvae

    for package in (brainslices, vqvae, pixelcnn, tuning):
        assert (Path(package.__file__).parent / "py.typed").is_file()
        for exported in package.__all__:
            assert exported.isupper() or getattr(package, exported).__name__ == exported
    assert Path(sys.modules["vqvae.model"].__file__).parent == ROOT / "vqvae"
