"""A model as an ONNX file, run in onnxruntime before it appears.

The graph takes what the ``.pt2`` program takes, raw images (B, 3, height, width) uint8 RGB; normalisation is
in it. onnxruntime takes images of any size, and of a size that the graph is not made for the logits would
lack a row: so the graph ends with a check that stops it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppar_dist import __version__
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export.exported import ExportedProgram
from ppar_dist.export.folder import preprocessing
from ppar_dist.export.program import (
    LogitsOnly,
    deviation_on,
    exported,
    noise,
    other_sizes,
    shapes_of,
    size_multiple,
)
from ppar_dist.files.durable import write_atomically
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.synthetic import DOMAINS, render
from ppar_dist.text import one_line

OPSET = 20
INPUT, OUTPUT = "images", "logits"

_LARGEST = 2_000_000_000  # bytes of weights: protobuf holds 2 GiB in all
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")  # loggers that tell of every node of a graph
_LEAST_RENDERED = 32  # pixels of a side of a rendered street


def write(
    path: Path,
    out: Path,
    size: tuple[int, int] | None = None,
    which: str = "latest",
    weights: str = "raw",
) -> ExportedProgram:
    """Write an ONNX file: uint8 images (B, 3, height, width) → logits (B, K, height/4, width/4) float32.

    Any number of images, of any size that is a multiple of the model's coarsest stride; the graph stops at
    others. Class names, palette, preprocessing and checkpoint are in its metadata. It is run in onnxruntime
    on rendered streets and noise of other sizes, and appears under its name only when its logits agree.

    Args:
        path: a run, checkpoint or model folder.
        out: the file to write.
        size: (height, width) in pixels the graph is fixed to; None: any.
        which: ``latest`` or ``best``, for a run folder.
        weights: ``raw`` or ``averaged``.

    Raises:
        UserError: the libraries are missing, or the model is too large, unusable or not made for any size.
        RuntimeError: the graph does not reproduce the model.
    """
    _refuse_missing()
    segmentor, config, classes, checkpoint = load_segmentor(path, "cpu", which, weights)
    held = sum(value.numel() * value.element_size() for value in segmentor.state_dict().values())
    if held > _LARGEST:
        raise UserError(f"an ONNX file holds at most 2 GB, the weights are {held / 1e9:.1f} GB; export .pt2")
    model = LogitsOnly(segmentor).eval()
    multiple = 1 if size else size_multiple(segmentor)
    proto, opset = _converted(model, multiple, size)
    shapes = shapes_of(classes.num_classes, size)
    _name_shapes(proto, *shapes)
    if multiple > 1:
        _stop_other_sizes(proto, multiple)
    _describe(proto, _facts(segmentor, config, classes, multiple) | {"checkpoint": checkpoint.name})
    content = _checked(proto)
    session = _session(content)
    deviation = max(
        deviation_on(images, model, lambda each: _run(session, each), "graph")
        for images in _images(multiple, size)
    )
    write_atomically(out, content)
    names = classes.classes
    return ExportedProgram(out, "onnx", checkpoint.name, names, deviation, *shapes, multiple, opset)


def _refuse_missing() -> None:
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"an ONNX file needs onnx, onnxscript and onnxruntime ({error.name} is missing); "
            "pip install 'ppar-dist[export]'"
        ) from None


def _converted(model: LogitsOnly, multiple: int, size: tuple[int, int] | None) -> tuple[Any, int]:
    """The graph of a model and its opset."""
    program = exported(model, multiple, size)
    try:
        with _unheard():
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise UserError(
            f"this model has an operation that ONNX lacks ({one_line(error)[:200]}); export a .pt2"
        ) from None
    assert made is not None
    proto = made.model_proto
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    return proto, opset


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without the exporter's remarks on its own progress."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKATIVE}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _name_shapes(proto: Any, input_shape: tuple[int | str, ...], output_shape: tuple[int | str, ...]) -> None:
    """Give the axes of input and output their names or sizes."""
    graph = proto.graph
    del graph.value_info[:]  # shapes in between, in the exporter's own symbols
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # lines of source code, with paths of this machine
    for value, shape in ((graph.input[0], input_shape), (graph.output[0], output_shape)):
        for axis, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(side, int):
                axis.dim_value = side
            else:
                axis.dim_param = side


def _stop_other_sizes(proto: Any, multiple: int) -> None:
    """Let the graph fail where height or width is not a multiple, or is less than two of them.

    A table of one zero is asked for its entry 0, or for one that it lacks; the name of that node is what
    onnxruntime tells. What it gives is added to the logits, so that no optimiser leaves it out.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    constants: dict[str, NDArray[Any]] = {
        "sides_multiple": np.array([multiple], np.int64),
        "sides_least": np.array([2 * multiple], np.int64),
        "sides_none": np.array([0], np.int64),
        "sides_table": np.array([0], np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in graph.node:
        for number, name in enumerate(node.output):
            if name == OUTPUT:
                node.output[number] = "logits_of_any_size"
    name = f"height_and_width_are_multiples_of_{multiple}_from_{2 * multiple}_on"
    graph.node.extend(
        [
            helper.make_node("Shape", [INPUT], ["sides"], start=2, end=4),
            helper.make_node("Mod", ["sides", "sides_multiple"], ["sides_rest"]),
            helper.make_node("Sub", ["sides_least", "sides"], ["sides_less"]),
            helper.make_node("Max", ["sides_less", "sides_none"], ["sides_lack"]),
            helper.make_node("Add", ["sides_rest", "sides_lack"], ["sides_wrong"]),
            helper.make_node("ReduceMax", ["sides_wrong"], ["sides_worst"], keepdims=0),
            helper.make_node("Gather", ["sides_table", "sides_worst"], ["sides_zero"], name=name),
            helper.make_node("Add", ["logits_of_any_size", "sides_zero"], [OUTPUT]),
        ]
    )


def _facts(segmentor: Segmentor, config: Config, classes: ClassSet, multiple: int) -> dict[str, Any]:
    return {
        "class_set": classes.name,
        "classes": list(classes.classes),
        "palette": [list(colour) for colour in classes.palette],
        "multiple": multiple,
        "preprocessing": preprocessing(segmentor, config) | {"in_graph": ["mean", "std"]},
    }


def _describe(proto: Any, facts: dict[str, Any]) -> None:
    from onnx import helper

    proto.producer_name, proto.producer_version = "ppar_dist", __version__
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    helper.set_model_props(proto, texts)


def _checked(proto: Any) -> bytes:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"the exported graph is not valid ONNX: {one_line(error)}") from error
    content: bytes = proto.SerializeToString()
    return content


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own, which have no class in common
        raise UserError(
            f"onnxruntime cannot load this model ({one_line(error)[:200]}); export a .pt2"
        ) from None


def _run(session: Any, images: Tensor) -> Tensor:
    try:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    except Exception as error:  # as above
        size = "x".join(map(str, images.shape[2:]))
        raise UserError(
            f"onnxruntime cannot run this model on images of {size} ({one_line(error)[:200]}): an operation "
            "in it depends on the size; fix one with --size HEIGHT WIDTH, or export a .pt2"
        ) from None


def _images(multiple: int, size: tuple[int, int] | None) -> Iterator[Tensor]:
    """Images (B, 3, H, W) that the export did not see: a street, then three of noise."""
    first, *others = other_sizes(multiple, size)
    if min(first) >= _LEAST_RENDERED and max(first) <= 1024:
        street, _ = render(0, DOMAINS[0], 0, first)
        yield torch.from_numpy(np.array(street)).permute(2, 0, 1)[None].contiguous()
    yield noise(1, *first, seed=1)
    for each in others or [first]:
        yield noise(3, *each, seed=2)
