"""Foreign files cannot execute code, and the code uses no call that would allow it."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppar_dist.class_sets import class_set
from ppar_dist.config.model_section import BackboneConfig, TextConfig
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.files.jsonl import JsonLines, drop_after
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.text import text_prototypes
from ppar_dist.report import write_report
from tests.unit.tiny_run import make_run

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "ppar_dist").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
# Never called: they run what a file holds, write where an archive says, or guess a free name.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.full_load_all", "yaml.unsafe_load_all"),
    *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "np.fromregex"),
    *("tempfile.mktemp", "shutil.unpack_archive"),
}
# Never imported, but for the names of their errors.
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ERRORS = {"UnpicklingError", "PickleError"}
# Called with this argument or not at all; else they unpickle.
ARGUMENTS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def name_of(node: ast.expr) -> str:
    """The dotted name that a call or attribute is of."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(tree: ast.Module) -> Iterator[str]:
    """Calls in a module that could let a file execute code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            yield from (f"{node.lineno}: {a.name}" for a in node.names if a.name not in ERRORS)
        if isinstance(node, ast.Attribute) and name_of(node.value) in UNPICKLERS and node.attr not in ERRORS:
            yield f"{node.lineno}: {name_of(node)}"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {text}" for text in call_problems(node))


def call_problems(call: ast.Call) -> Iterator[str]:
    name, keywords = (
        name_of(call.func).replace("numpy.", "np."),
        {item.arg: item.value for item in call.keywords},
    )
    if name in FORBIDDEN:
        yield name
    if name.endswith((".extract", ".extractall")):
        yield f"{name} writes where an archive says"
    if name in ARGUMENTS:
        argument, value = ARGUMENTS[name]
        given = keywords.get(argument)
        if not (isinstance(given, ast.Constant) and given.value is value):
            yield f"{name} without {argument}={value}"
    if name == "yaml.load" and name_of(keywords.get("Loader", ast.Name(""))) != "StrictLoader":
        yield "yaml.load with another loader than ours"
    shell = keywords.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield f"{name} with a shell"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_trusts_a_file(path: Path) -> None:
    assert list(problems(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "archive.extractall(folder)",
        "pickle.loads(data)",
        "from pickle import loads",
        "from dill import load",
        "eval(text)",
        "tempfile.mktemp()",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(problems(ast.parse(code)))


def test_the_strict_loader_is_a_safe_one() -> None:
    import yaml

    from ppar_dist.config.yaml import StrictLoader, read_yaml

    assert issubclass(StrictLoader, yaml.SafeLoader)
    for text in ("!!python/object/apply:os.mkdir [x]", "!!python/name:os.system ''", "a: !!python/tuple [1]"):
        with pytest.raises(yaml.YAMLError):
            read_yaml(text)


@pytest.mark.parametrize(
    ("kind", "name", "suffix"),
    [
        ("open_clip", "ViT-B-16", ".pt"),
        ("open_clip", "RN50", ".bin"),
        ("timm", "test_convnext", ".pth"),
        ("timm", "test_convnext", ".pth.tar"),
    ],
)
def test_weights_that_would_run_code_are_refused(tmp_path: Path, kind: str, name: str, suffix: str) -> None:
    mark, file = tmp_path / "owned", tmp_path / f"weights{suffix}"
    torch.save({"state_dict": {"weight": Bomb(mark)}}, file)
    config = BackboneConfig.model_validate(
        {"kind": kind, "name": name, "pretrained": str(file)} | ({"embed_dim": 16} if kind == "timm" else {})
    )
    with pytest.raises(UserError, match=r"cannot"):
        build_backbone(config)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the file is what it is said to be
    assert mark.exists()


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_are_as_open_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    """Only colleagues whom the owner permits may evaluate a run."""
    run = tmp_path / "run"
    make_run(tmp_path / "shards", run)
    log = JsonLines(run / "metrics" / "train.jsonl")
    log.write({"step": 1})
    log.close()
    drop_after(run / "metrics" / "train.jsonl", 1)  # a resume replaces the file
    write_report(run)
    for path in [run, *run.rglob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(path.stat().st_mode & 0o7777) == oct(wanted), path


def test_embeddings_that_would_run_code_are_refused(tmp_path: Path) -> None:
    mark, file = tmp_path / "owned", tmp_path / "text.npz"
    names = np.array([Bomb(mark)], dtype=object)
    np.savez(file, names=names, embeddings=np.ones((1, 8), np.float32), allow_pickle=True)
    with pytest.raises(UserError):
        text_prototypes(TextConfig(file=file), class_set("roads6"), None)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "ppar.safetensors"])
def test_a_checkpoint_file_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "shards", tmp_path / "run")
    mark, folder = tmp_path / "owned", tmp_path / "run" / "checkpoints" / "step-00000040"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError):
        load_segmentor(folder, "cpu")
    assert not mark.exists()
