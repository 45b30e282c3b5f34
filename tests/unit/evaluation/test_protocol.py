"""The sizes that a protocol asks for, the published ones, and the line that names them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from ppar_dist.config.evaluation_section import PRESETS, EvaluationConfig
from ppar_dist.config.identity import config_hash
from ppar_dist.config.load import dump_config, load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.transforms import EvalTransform
from ppar_dist.errors import ConfigError, UserError
from ppar_dist.evaluation.options import check_options, with_options
from ppar_dist.evaluation.protocol import Protocol, Slide, of_settings, protocol_of
from tests.unit.tiny_run import make_config


def rescaled(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """mmcv's rule of `Resize` with `keep_ratio`, as its documentation puts it.

    The longer side is at most the larger of the two numbers, the shorter at most the smaller.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


# What the papers' configurations say of the validation sets' images: docs/evaluation.md names the files.
@pytest.mark.parametrize(
    ("preset", "image", "seen", "slides"),
    [
        ("rein", (1024, 2048), (512, 1024), True),
        ("rein", (720, 1280), (720, 1280), True),
        ("rein", (1536, 2048), rescaled(1536, 2048, (1024, 512)), True),
        ("tqdm", (1024, 2048), (1024, 2048), True),
        ("tqdm", (720, 1280), (720, 1280), True),
        ("tqdm", (3024, 4032), rescaled(3024, 4032, (2048, 1024)), True),
        ("famix", (1024, 2048), (1024, 2048), False),
        ("famix", (720, 1280), (720, 1280), False),
        ("mmseg", (1024, 2048), (1024, 2048), False),
        ("mmseg", (720, 1280), rescaled(720, 1280, (2048, 1024)), False),
        ("mmseg", (2048, 1024), rescaled(2048, 1024, (2048, 1024)), False),
    ],
)
def test_presets_see_what_the_papers_configurations_say(
    preset: str, image: tuple[int, int], seen: tuple[int, int], slides: bool
) -> None:
    protocol = of_settings(EvaluationConfig.model_validate({"preset": preset}))
    sizes = protocol.sizes(*image)
    assert (sizes.images, sizes.labels) == ((seen,), image)
    assert protocol.slide == (Slide((512, 512), (341, 341)) if slides else None)
    assert not protocol.flip
    assert str(protocol).startswith(f"{preset}: ")


@pytest.mark.parametrize(("height", "width"), [(97, 131), (131, 97), (720, 960), (64, 64), (375, 1242)])
def test_a_shorter_side_is_that_of_the_transform(height: int, width: int) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert Protocol(60).sizes(height, width).images == (tuple(EvalTransform(60)(image).shape[1:]),)


def test_scales_and_test_size() -> None:
    protocol = Protocol((512, 1024), scales=(0.5, 1.0, 1.5), at_test_size=True)
    sizes = protocol.sizes(1024, 2048)
    assert sizes.images == ((256, 512), (512, 1024), (768, 1536))
    assert sizes.labels == (512, 1024)
    assert Protocol(None, scales=(2.0,)).sizes(30, 40).images == ((60, 80),)


def test_protocols_that_differ_have_different_lines() -> None:
    base = Protocol(180)
    slides = (None, Slide((512, 512), (341, 341)), Slide((512, 512), (256, 256)))
    found = [
        replace(base, size=size, slide=slide, flip=flip, scales=scales, at_test_size=at, unresized=kept)
        for size, slide, flip, scales, at, kept in product(
            (180, None, (512, 1024)),
            slides,
            (False, True),
            ((1.0,), (1.0, 1.5)),
            (False, True),
            ((), ((9, 9),)),
        )
    ]
    lines = {str(protocol) for protocol in found}
    assert len(lines) == len(found)
    assert not any("\n" in line for line in lines)


def test_a_preset_is_written_out_and_keys_beside_it_replace_its_own() -> None:
    config = make_config_with(preset="rein", flip=True)
    assert config.evaluation.stride == (341, 341)
    assert str(protocol_of(config)) == (
        "within 512x1024, but 720x1280 as it is, windows 512x512 every 341x341, flipped too, "
        "labels at their own size"
    )


def test_the_section_reads_back_and_does_not_determine_the_run(tmp_path: Path) -> None:
    config = make_config_with(preset="famix", batch=4)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert config_hash(config) == config_hash(make_config_with())


def test_options_replace_keys_and_a_preset_the_whole_protocol() -> None:
    config = make_config_with(size=[64, 128], flip=True, batch=3)
    assert with_options(config, {}) is config
    changed = with_options(config, {"size": "own"}).evaluation
    assert (changed.size, changed.flip, changed.batch) == ("own", True, 3)
    preset = with_options(config, {"preset": "mmseg"}).evaluation
    assert (preset.size, preset.flip, preset.batch) == ((1024, 2048), False, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "slide", "crop": (9, 9), "stride": (600, 10)}, "stride is at most crop"),
        ({"size": 0}, r"size: pixels of the shorter side .*, \[height, width\], own or null, got 0$"),
        ({"size": "big"}, "size: pixels of the shorter side .* got 'big'$"),
        ({"scales": ()}, "scales has at least 1 values"),
        ({"scales": [0.0]}, r": scales\.0 is at least 0\.1, got 0\.0$"),
        ({"scales": [1, 0.001]}, r"scales\.1 is at least 0\.1, got 0\.001$"),
        ({"scales": [100]}, "is at most 10, got 100"),
        ({"batch": 0}, "batch is at least 1, got 0"),
        ({"flip": "yes"}, "flip is true or false, got 'yes'"),
        ({"flip": 1}, "flip is true or false, got 1"),
        ({"size": "512"}, "size: pixels"),
        ({"batch": "2"}, "batch is a whole number, got '2'"),
        ({"scales": "1"}, "scales is a list, got '1'"),
        ({"mode": "slides"}, "mode is one of whole, slide, got 'slides'; did you mean slide"),
        ({"flips": True}, "unknown key flips; did you mean flip"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_options(options)
    with pytest.raises(ConfigError, match=said):
        with_options(make_config_with(), options)


@pytest.mark.parametrize(
    ("section", "options", "said"),
    [
        ({}, {"crop": (64, 64), "stride": (64, 64)}, "crop and stride are of windows"),
        ({}, {"stride": (64, 64)}, "stride are of windows"),
        ({"mode": "slide"}, {"mode": "whole", "crop": (600, 600)}, "add mode=slide"),
        ({}, {"preset": "famix", "crop": (600, 600)}, "add mode=slide"),
        ({"size": "own"}, {"unresized": [(8, 8)]}, "with size=own all do"),
    ],
)
def test_an_option_without_effect_is_refused(
    section: dict[str, object], options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        with_options(make_config_with(**section), options)


def test_windows_are_asked_for_by_mode_section_or_preset() -> None:
    for section, options in (
        ({}, {"mode": "slide", "crop": (64, 64), "stride": (32, 32)}),
        ({"mode": "slide", "crop": [900, 900]}, {"stride": (800, 800)}),
        ({}, {"preset": "rein", "crop": (400, 400)}),
    ):
        check_options(options)
        assert with_options(make_config_with(**section), options).evaluation.mode == "slide"
    with pytest.raises(ConfigError, match="stride is at most crop"):
        with_options(make_config_with(mode="slide"), {"stride": (800, 800)})


def test_a_scale_leaves_a_cell_of_the_model() -> None:
    protocol = Protocol(None, scales=(1.0, 0.5))
    protocol.refuse_tiny(protocol.sizes(64, 100).images, 32)
    protocol.refuse_tiny([(8, 8), (32, 32)], 32)  # a small size that was asked for is no matter of scales
    with pytest.raises(UserError, match=r"at scale 0\.5 an image is seen at 31x50, and .* 32 pixels"):
        protocol.refuse_tiny(protocol.sizes(62, 100).images, 32)


def test_all_presets_are_among_the_keys_values() -> None:
    for name in PRESETS:
        assert EvaluationConfig.model_validate({"preset": name}).preset == name


def make_config_with(**evaluation: object) -> Config:
    return make_config(Path("nowhere"), Path("run"), evaluation=evaluation)
