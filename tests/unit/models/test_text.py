"""Original text prototypes: float64 loops from the formula, the file route with real embeddings, refusals."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ppar_dist.class_sets import ClassSet, class_set
from ppar_dist.config.model_section import BackboneConfig, TextConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.text import text_prototypes, write_embeddings
from tests.unit.models.tiny_clip import register

CLASSES = ClassSet(
    name="three",
    classes=("road", "tree", "car"),
    palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    members=(frozenset({"road"}), frozenset({"tree"}), frozenset({"car"})),
    prompts=(("road", "street"), ("tree",), ("car", "van", "lorry")),
)
TEMPLATES = ("a photo of a {}.", "a {} at night.")


class Encoder:
    """Another random vector, of another length, for each sentence."""

    def encode(self, sentences: Sequence[str]) -> Tensor:
        rows = [torch.randn(5, generator=torch.Generator().manual_seed(sum(s.encode()))) for s in sentences]
        return torch.stack([row * (1 + len(s)) for row, s in zip(rows, sentences, strict=True)])


class FakeBackbone:
    embed_dim = 5

    def text_tower(self) -> Encoder:
        return Encoder()


def loops(vectors: list[list[list[float]]], center: bool) -> np.ndarray:
    """t_k from the embeddings of each class's sentences, one number after the other."""

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in vector))
        return [value / length for value in vector]

    rows = []
    for sentences in vectors:
        units = [unit(vector) for vector in sentences]
        rows.append(unit([sum(column) / len(units) for column in zip(*units, strict=True)]))
    if center:
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        rows = [unit([value - m for value, m in zip(row, mean, strict=True)]) for row in rows]
    return np.array(rows)


@pytest.mark.parametrize("center", [False, True])
def test_prototypes_average_names_and_templates_as_the_formula_says(center: bool) -> None:
    found = text_prototypes(TextConfig(templates=TEMPLATES, center=center), CLASSES, FakeBackbone())
    sentences = [[t.replace("{}", name) for name in names for t in TEMPLATES] for names in CLASSES.prompts]
    expected = loops([Encoder().encode(group).double().tolist() for group in sentences], center)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.norm(dim=1), 1.0, atol=1e-6)
    if center:
        assert not np.allclose(
            found, text_prototypes(TextConfig(templates=TEMPLATES, center=False), CLASSES, FakeBackbone())
        )


def test_the_file_route_averages_the_names_it_has(tmp_path: Path) -> None:
    names = np.array(["lorry", "street", "tree", "car", "road", "unused"])
    embeddings = np.random.default_rng(0).normal(size=(6, 5))
    np.savez(tmp_path / "text.npz", names=names, embeddings=embeddings)
    found = text_prototypes(TextConfig(file=tmp_path / "text.npz", center=True), CLASSES, None)
    expected = loops(
        [embeddings[[4, 1]].tolist(), embeddings[[2]].tolist(), embeddings[[3, 0]].tolist()], True
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_real_embeddings_of_roads6() -> None:
    folder = os.environ.get("PPAR_TEST_DATA")
    if not folder or not (Path(folder) / "weights").is_dir():
        pytest.skip("PPAR_TEST_DATA names no folder with weights/ in it: real embeddings are not at hand")
    path = Path(folder) / "weights" / "clip-vit-b-16-openai-text-multi.npz"
    plain = text_prototypes(TextConfig(file=path, center=False), class_set("roads6"), None)
    cosines = (plain @ plain.T)[~torch.eye(6, dtype=torch.bool)]
    assert plain.shape == (6, 512)
    assert cosines.min() > 0.7
    centred = text_prototypes(TextConfig(file=path), class_set("roads6"), None)
    assert (centred @ centred.T)[~torch.eye(6, dtype=torch.bool)].max() < 0.3
    torch.testing.assert_close(centred.norm(dim=1), torch.ones(6))


def test_the_text_tower_route(tmp_path: Path) -> None:
    register(tmp_path)
    backbone = build_backbone(BackboneConfig(name="tiny-vit"))
    found = text_prototypes(TextConfig(templates=TEMPLATES, center=False), CLASSES, backbone)
    tower = backbone.text_tower()
    groups = [[t.replace("{}", name) for name in names for t in TEMPLATES] for names in CLASSES.prompts]
    expected = loops([tower.encode(group).double().tolist() for group in groups], False)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert not found.requires_grad


def test_a_written_file_gives_the_prototypes_of_its_tower(tmp_path: Path) -> None:
    """With one name per class; with several, the file averages names after templates."""
    register(tmp_path)
    backbone = build_backbone(BackboneConfig(name="tiny-vit"))
    tower = backbone.text_tower()
    assert tower is not None
    path = tmp_path / "text.npz"
    roads = class_set("roads6")
    assert all(len(prompts) == 1 for prompts in roads.prompts)
    write_embeddings(path, [prompts[0] for prompts in roads.prompts], TEMPLATES, tower)
    from_file = text_prototypes(TextConfig(file=path), roads, None)
    from_tower = text_prototypes(TextConfig(templates=TEMPLATES), roads, backbone)
    torch.testing.assert_close(from_file, from_tower, atol=1e-5, rtol=1e-5)


def test_names_without_a_text_of_their_own_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    with pytest.raises(UserError, match=r"a template is a sentence with \{\} .*got \['a street'\]; add"):
        write_embeddings(path, ["road", "tree"], ["a photo of a {}.", "a street"], Encoder())
    with pytest.raises(UserError, match="of road and road are the same"):
        write_embeddings(path, ["road", "tree", "road"], TEMPLATES, Encoder())
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory; give another --out"):
        write_embeddings(path, ["road", "tree"], TEMPLATES, Encoder())
    assert [path.name] == [found.name for found in tmp_path.iterdir()]


def write(path: Path, **arrays: np.ndarray) -> TextConfig:
    np.savez(path, **arrays)
    return TextConfig(file=path)


def test_refusals_name_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    names, rows = np.array(["road", "tree", "car"]), np.eye(3, 5)
    with pytest.raises(UserError, match=r"cannot read text.file=.*npz with names"):
        text_prototypes(TextConfig(file=path), CLASSES, None)
    with pytest.raises(UserError, match=r"cannot read text.file=.*embeddings"):
        text_prototypes(write(path, names=names), CLASSES, None)
    with pytest.raises(UserError, match="one row per name"):
        text_prototypes(write(path, names=names[:2], embeddings=rows), CLASSES, None)
    with pytest.raises(UserError, match=r"no embedding of tree, car .*add them"):
        text_prototypes(write(path, names=names[:1], embeddings=rows[:1]), CLASSES, None)
    with pytest.raises(UserError, match="non-finite or zero embedding"):
        text_prototypes(write(path, names=names, embeddings=rows * 0), CLASSES, None)
    with pytest.raises(UserError, match=r"3 wide, the backbone's joint space 5"):
        text_prototypes(write(path, names=names, embeddings=rows[:, :3]), CLASSES, FakeBackbone())
    one = dataclasses.replace(
        CLASSES, **{name: getattr(CLASSES, name)[:1] for name in ("classes", "palette", "members", "prompts")}
    )
    with pytest.raises(UserError, match=r"text.center=false"):
        text_prototypes(write(path, names=names, embeddings=rows), one, None)
    with pytest.raises(UserError, match=r"of tree and car are the same: .*give each a text of its own"):
        text_prototypes(write(path, names=names, embeddings=rows[[0, 1, 1]] * [[1], [2], [3]]), CLASSES, None)
    twice = np.array(["road", "tree", "car", "tree"])
    with pytest.raises(UserError, match="one row per name, but several of tree; keep one"):
        text_prototypes(write(path, names=twice, embeddings=np.eye(4, 5)), CLASSES, None)
    with pytest.raises(UserError, match=r"no text tower: set text.file"):
        text_prototypes(TextConfig(), CLASSES, None)
    with pytest.raises(UserError, match=r"add \{\}"):
        text_prototypes(TextConfig(templates=("a road",)), CLASSES, FakeBackbone())
