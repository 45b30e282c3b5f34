"""The configuration: strict, with every problem in one message, and unchanged when written and read back."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppar_dist.config.load import all_keys, dump_config, load_config, parse_config, value_of
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.text import printable, visible_lines
from tests.ranks import tiny_config, write_config


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return tiny_config(tmp_path, tmp_path / "run")


def test_a_resolved_file_reads_back_equal(tree: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(tree)
    assert load_config(_write(tmp_path, yaml.safe_load(dump_config(config)))) == config


def test_overrides_are_yaml_and_win(tree: dict[str, Any], tmp_path: Path) -> None:
    path = _write(tmp_path, tree)
    config = load_config(path, ["train.steps=17", "augment.gamma=null", "data.sources=[a, b]", "targets.x=y"])
    assert config.train.steps == 17
    assert config.augment.gamma is None
    assert [source.name for source in config.data.sources] == ["a", "b"]
    assert config.targets == {"x": Path("y")}


def test_every_problem_is_in_one_message(tree: dict[str, Any]) -> None:
    tree["train"]["steps"] = 0
    tree["data"]["crop_size"] = 3
    del tree["model"]
    with pytest.raises(UserError) as caught:
        parse_config(tree)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("train.steps", "got 0", "unknown key data.crop_size", "model is required"):
        assert part in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "unknown key train.step"),
        ("train.steps", "an override is key=value, got 'train.steps'"),
        ("=3", "an override is key=value"),
        ("train.steps=[", "is not valid YAML"),
        ("train.steps.x=3", "steps is a value, not a section"),
        ("train.steps=many", "train.steps"),
        ("train.micro_batch=0", "train.micro_batch is at least 1, got 0"),
        ("text.file=null", "set text.file"),
        ("data.sources=[a, a]", r"\['a'\] are repeated"),
        (
            f"data.sources={[f's{n}' for n in range(1025)]}",
            "at most 1024 sources, got 1025; pack some into one",
        ),
        ("data.sources=[{name: a, weight: 1}, b]", "give every source a weight, or none"),
        ("ppar.alignment.boundaries=[0.5, 0.2, 0.7]", "boundaries rise"),
        ("optim.betas=[0.9, 1.0]", r"optim\.betas\.1 is less than 1"),
        ("ppar.reweighting.min=1.5", "min <= 1 <= max"),
        ("augment.scale=[2, 1]", r"scale is \(low, high\)"),
        ("model.backbone.embed_dim=null", "needs embed_dim"),
        ("optim.lr=.nan", "optim.lr"),
        ("faults.stall_s=1e12", r"faults\.stall_s is at most 2592000, got"),
    ],
)
def test_a_wrong_override_says_what_to_change(
    tree: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(_write(tmp_path, tree), [override])


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds keys and values, got list"), ("a: [", "not valid YAML")]
)
def test_a_file_that_is_not_a_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=s3://key:hidden@bucket/run",
        "data.root=https://user:hidden@host/shards",
        "text.file=https://host/a.npz?X-Amz-Signature=hidden",
        "run.name=https://host/?token=hidden",
        "data.sources=[a, 'https://user:hidden@host/b']",
        "targets.night=gs://hidden@bucket/night",
        "model.backbone.options={pretrained_cfg: {url: 'https://user:hidden@host/w'}}",
        "model.backbone.options={'https://user:hidden@host/w': 1}",
        "run.dir:https://user:hidden@host/x",
        "run.dir=[https://user:hidden@host/x",
    ],
)
def test_a_url_is_refused_and_its_credentials_are_not_repeated(
    tree: dict[str, Any], tmp_path: Path, override: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(_write(tmp_path, tree), [override])
    assert "hidden" not in str(caught.value)
    assert re.split("[=:]", override)[0] in str(caught.value)


@pytest.mark.parametrize("key", ["data.root", "targets.night", "init_from", "text.file", "checkpoint.remote"])
def test_places_of_data_may_be_urls(tree: dict[str, Any], tmp_path: Path, key: str) -> None:
    config = load_config(_write(tmp_path, tree), [f"{key}=s3://bucket/some/where"])
    assert value_of(config, key) == "s3://bucket/some/where"
    assert load_config(_write(tmp_path, yaml.safe_load(dump_config(config)))) == config


@pytest.mark.parametrize("place", ["/data/run", "https://host/run"])
def test_checkpoints_go_where_can_be_written(tree: dict[str, Any], tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.remote: expected the URL of a prefix, s3:// or gs://"):
        load_config(_write(tmp_path, tree), [f"checkpoint.remote={place}"])


@pytest.mark.parametrize(
    ("text", "size"), [("50 GB", 50 * 10**9), ("1.5kb", 1500), ("7", 7), ("2TB", 2 * 10**12)]
)
def test_sizes_are_bytes_or_text(tree: dict[str, Any], tmp_path: Path, text: str, size: int) -> None:
    assert load_config(_write(tmp_path, tree), [f"data.cache.size={text}"]).data.cache.size == size


def test_credentials_of_any_message_are_masked() -> None:
    text = (
        "cannot read config https:/user:hidden@host/c.yaml?sig=hidden&X-Amz-Security-Token=hidden&part=2: no"
    )
    assert visible_lines(text) == (
        "cannot read config https:/***@host/c.yaml?sig=***&X-Amz-Security-Token=***&part=2: no"
    )
    assert visible_lines("a@b /data/token=1/x") == "a@b /data/token=***"
    assert printable("s3://KEY:SE/CR@ET@bucket/c.yaml") == "s3://***@bucket/c.yaml"
    assert len(printable("a-" * 200_000)) < 500  # in no time: hours, were every letter a new attempt


def test_a_configuration_cannot_be_changed_in_flight(tree: dict[str, Any]) -> None:
    config: Config = parse_config(tree)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 5  # type: ignore[misc]


def _write(folder: Path, tree: dict[str, Any]) -> Path:
    return write_config(folder / "config.yaml", tree)


def _keys_with_bounds() -> list[str]:
    return [key for key in all_keys() if not key.startswith(("run.dir", "model.backbone.options"))]


@pytest.mark.parametrize("wrong", ["{x: [1]}", "[[]]", "-1.5", "nonsense", "null", ".nan", "true"])
def test_no_message_speaks_of_the_library_that_checks(tree: dict[str, Any], wrong: str) -> None:
    """Every key with a wrong value: the key is named, and nothing of pydantic is."""
    value = yaml.safe_load(wrong)
    for key in _keys_with_bounds():
        *sections, last = key.split(".")
        changed = copy.deepcopy(tree)
        node = changed
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        else:
            node[last] = value
        try:
            parse_config(changed)
        except UserError as error:
            text = str(error)
            assert last in text or sections, key
            for word in ("Input", "validat", "function-", "constrained", "tuple", "pydantic", "parse"):
                assert word not in text, f"{key}={wrong}: {text}"


def test_a_list_is_short_only_where_it_is(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({**tree, "evaluation": {"scales": [0]}})
    assert str(caught.value) == "config: evaluation.scales.0 is at least 0.1, got 0"
