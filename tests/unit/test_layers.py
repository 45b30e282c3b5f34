"""Imports run downwards, and each outside library has one door."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure import files, imported_modules, imports, module_of, room_of

# A room imports from floors below its own only.
FLOORS = (
    ("__main__",),
    ("cli", ""),
    ("doctor",),
    ("training",),
    ("api", "export", "report", "sweep"),
    ("evaluation", "monitoring"),
    ("data", "data.prepare", "ppar", "synthetic", "trackers"),
    ("data.shards", "launch", "models", "run", "watchdog"),
    ("class_sets",),
    ("checkpoint", "config", "pictures", "processes", "view"),
    ("storage",),
    ("distributed", "files"),
    ("errors", "exit_codes", "text"),
)
DOORS = {
    "deepspeed": {"training.engine"},
    "peft": {"models.adapters", "models.lora_attention"},
    "torch.distributed": {"distributed"},
    "prometheus_client": {"monitoring"},
    "torch.utils.tensorboard": {"trackers.tensorboard_files"},
    "mlflow": {"trackers.mlflow_server"},
    "wandb": {"trackers.wandb_service"},
    "segmentation_models_pytorch": {"models.smp_decoders"},
    "onnx": {"export.onnx_file"},
    "onnxruntime": {"export.onnx_file"},
    "av": {"evaluation.videos"},
    "fsspec": {"storage.remote"},
    "zlib_ng": {"pictures"},
    "simplejpeg": {"data.shards.jpeg"},
    "webdataset": {"data.loader", "data.shards.writer"},
}
# Rooms and modules of pure functions: they read no environment.
PURE = ("class_sets", "config", "models", "ppar", "data.batches", "data.order", "data.transforms")
PURE_ALSO = ("evaluation.confusion", "training.learning_rate")


def floor_of(room: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"{room} has no floor; add it to FLOORS"
    return found[0]


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    here = room_of(module_of(path))
    for there in map(room_of, imported_modules(path)):
        assert here == there or floor_of(there) > floor_of(here), f"{here} imports {there}"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_each_library_has_one_door(path: Path) -> None:
    here = module_of(path)
    for name in imports(path):
        for library, doors in DOORS.items():
            if name == library or name.startswith(library + "."):
                assert any(here == door or here.startswith(door + ".") for door in doors), f"{here}: {name}"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_the_pure_level_reads_no_environment(path: Path) -> None:
    module = module_of(path)
    if any(module == pure or module.startswith(pure + ".") for pure in (*PURE, *PURE_ALSO)):
        assert "environ" not in path.read_text(encoding="utf-8")
