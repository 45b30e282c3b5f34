"""Typed, strict configuration: one YAML file plus ``key=value`` overrides.

The schema below is the reference of every key. Unknown keys, wrong types and impossible
combinations are refused when the file is read, all of them in one message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ppar_dist.fields import (
    Count,
    Location,
    Momentum,
    NonNegative,
    Number,
    Patience,
    PlainValues,
    Positive,
    Ratio,
    Seed,
    Whole,
    url_keys,
)
from ppar_dist.messages import one_line, printable, problem, shown
from ppar_dist.strict_yaml import MAX_CHARACTERS, MAX_DEPTH, read_yaml

MAX_SOURCES = 1024  # each has at least one of the 1024 slots that share out positions (``data.order``)
_PROBLEMS = 20  # named in one message; of more, only their number


class ConfigError(ValueError):
    """A configuration or data problem that a retry cannot cure (exit code 78)."""


class Section(BaseModel):
    """Base of all sections: immutable, and closed to keys it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """Where the run lives."""

    dir: Location
    name: str = ""


class SourceConfig(Section):
    """One labelled source domain: a folder of shards under ``data.root`` and its sampling weight."""

    name: str
    weight: Positive | None = None  # relative share of positions; None: in proportion to its size


class DataConfig(Section):
    """Source domains, their order, and the size of what the model sees."""

    root: Location
    classes: str
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    size: Count = 180  # pixels of the shorter side before random scaling, and at evaluation
    crop: tuple[Count, Count] = (180, 240)  # height, width in pixels
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.1  # last part of each source, never trained on
    block: Count = 16  # consecutive samples that stay together (sequential reads)
    window: Count = 8  # blocks among which samples are permuted
    workers: Annotated[Whole, Field(ge=0)] = 1  # loader processes per rank
    max_bad_ratio: Ratio = 0.01  # of a domain's positions; more bad samples than that end the job

    @field_validator("sources", mode="before")
    @classmethod
    def _names_are_enough(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value

    @model_validator(mode="after")
    def _sources_agree(self) -> DataConfig:
        if len(self.sources) > MAX_SOURCES:
            raise ValueError(
                f"at most {MAX_SOURCES} sources, got {len(self.sources)}; pack some into one domain"
            )
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each source is named once, {twice} are repeated; use weight instead")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give every source a weight, or none (then size decides)")
        return self


class AugmentConfig(Section):
    """Training augmentation (torchvision.transforms.v2); every draw is seeded by position."""

    scale: tuple[Positive, Positive] = (0.75, 1.75)
    flip: Ratio = 0.5
    photometric: Ratio = 0.8  # chance of colour jitter
    brightness: NonNegative = 0.5
    contrast: NonNegative = 0.5
    saturation: NonNegative = 0.5
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    grayscale: Ratio = 0.1
    gamma: tuple[Positive, Positive] | None = (0.5, 2.0)  # drawn log-uniformly; None: off
    blur: Ratio = 0.2

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentConfig:
        for name in ("scale", "gamma"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name} is (low, high), got {pair}; swap the two")
        return self


class BackboneConfig(Section):
    """An image tower and where its weights come from."""

    kind: Literal["open_clip", "timm"] = "open_clip"
    name: str = "ViT-B-16"
    pretrained: str | None = None  # open_clip tag or a checkpoint file; None: random initialisation
    options: PlainValues = {}  # passed to the library's constructor
    embed_dim: Count | None = None  # joint width D; only for kind: timm, whose trunk has none
    dense_stride: Count = 16  # pixels per cell of the joint features; only for kind: timm
    trainable: Literal["all", "none"] = "all"
    batch_norm: Literal["frozen", "sync"] = "frozen"

    @model_validator(mode="after")
    def _width_is_known(self) -> BackboneConfig:
        if self.kind == "timm" and self.embed_dim is None:
            raise ValueError("kind: timm needs embed_dim, the width of the text embeddings (512)")
        if self.kind == "open_clip" and self.embed_dim is not None:
            raise ValueError("embed_dim comes from the open_clip model; remove it")
        return self


class DecoderConfig(Section):
    """From multi-level features to narrow pixel features."""

    kind: Literal["fpn", "aspp"] = "fpn"
    width: Count = 96


class TextConfig(Section):
    """Original text prototypes (OTP): a file of embeddings, or the backbone's own text tower."""

    file: Location | None = None  # .npz with `names` (N,) and `embeddings` (N, D)
    templates: tuple[str, ...] = ("a photo of a {}.",)  # for the text tower
    center: bool = True


class ModelConfig(Section):
    """The segmentor: backbone, decoder and classifier."""

    backbone: BackboneConfig
    decoder: DecoderConfig = DecoderConfig()
    classifier: Literal["otp", "otp_init", "linear"] = "otp"
    logit_scale: Positive = 20.0


class AlignmentConfig(Section):
    """Progressive alignment, easy to difficult."""

    enabled: bool = True
    features: Literal["dense", "embedding"] = "dense"  # the encoder's joint features or the decoder's
    boundaries: tuple[Ratio, Ratio, Ratio] = (0.1, 0.3, 0.5)  # progress at which stages 1, 2, 3 begin
    keep_earlier: bool = True
    temperature: Positive = 0.1
    text_weight: NonNegative = 0.1
    visual_weight: NonNegative = 0.1
    pixel_weight: NonNegative = 0.1
    admit_from: Annotated[Number, Field(gt=0, le=1)] = 0.3
    difficulty_bins: Annotated[Whole, Field(ge=2)] = 64

    @model_validator(mode="after")
    def _boundaries_rise(self) -> AlignmentConfig:
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries rise from stage to stage, got {self.boundaries}")
        return self


class BankConfig(Section):
    """The prototype bank."""

    momentum: Momentum = 0.9
    teacher: Literal["student", "ema", "frozen"] = "student"
    teacher_every: Count = 1  # steps between passes of the teacher (frozen, ema)
    teacher_momentum: Momentum = 0.99


class VtpConfig(Section):
    """Visual text prototypes; disabled means v_k = t_k everywhere."""

    enabled: bool = True
    alpha_max: Ratio = 0.5
    count_0: Positive = 2000.0  # cells


class ReweightingConfig(Section):
    """Reliability weights of source samples."""

    enabled: bool = True
    start_stage: Annotated[Whole, Field(ge=0, le=3)] = 1
    beta: NonNegative = 1.5
    min: Positive = 0.05
    max: Positive = 1.5
    min_spread: Positive = 1.0  # nats; floor of σ_r, so that clean sources keep nearly equal weights
    momentum: Momentum = 0.95

    @model_validator(mode="after")
    def _clip_holds_one(self) -> ReweightingConfig:
        if not self.min <= 1.0 <= self.max:
            raise ValueError(f"min <= 1 <= max, got min={self.min}, max={self.max}")
        return self


class PparConfig(Section):
    """The method; ``enabled: false`` is plain fine-tuning with the same model, data and budget."""

    enabled: bool = True
    min_purity: Annotated[Number, Field(gt=0, le=1)] = 0.75
    alignment: AlignmentConfig = AlignmentConfig()
    bank: BankConfig = BankConfig()
    vtp: VtpConfig = VtpConfig()
    reweighting: ReweightingConfig = ReweightingConfig()


class OptimConfig(Section):
    """AdamW with linear warm-up and polynomial decay."""

    lr: Positive = 1e-3  # decoder and classifier
    backbone_lr: NonNegative = 1e-3
    weight_decay: NonNegative = 0.05
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    warmup_ratio: Ratio = 0.05
    power: Positive = 0.9
    clip_grad_norm: NonNegative = 1.0  # 0: off


class TrainConfig(Section):
    """Budget and batch."""

    steps: Count
    global_batch: Count
    micro_batch: Count | None = None  # at most so many images per forward pass and rank; None: all at once
    log_every: Count = 10
    eval_every: Annotated[Whole, Field(ge=0)] = 0  # on held-out source data; 0: only at the end
    ledger: bool = False  # write down the key of every sample trained on


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2] = 0
    precision: Literal["fp32", "bf16"] = "fp32"


class CheckpointConfig(Section):
    """What is kept."""

    every: Annotated[Whole, Field(ge=0)] = 200  # steps; 0: only at the end
    keep_last: Count = 2
    keep_every: Annotated[Whole, Field(ge=0)] = 0  # steps; those at its multiples stay for good; 0: none
    keep_best: bool = True
    background: bool = True  # written by a thread from a copy in memory, while training goes on


class FaultsConfig(Section):
    """How long a job waits, and how often it tries again, before it gives up."""

    grace_s: Patience = 120.0  # seconds from a preemption signal to a forced exit; less than the scheduler's
    stall_s: Patience = 600.0  # seconds in one phase of a step after which a rank counts as hung
    peer_s: Patience = 60.0  # seconds of silence after which a rank counts as dead
    max_non_finite: Count = 5  # steps in a row without a finite result before the run rolls back
    max_rollbacks: Annotated[Whole, Field(ge=0)] = 3  # in a run; the next one ends it


class MonitoringConfig(Section):
    """How a run is watched: an endpoint per rank, or files."""

    enabled: bool = True
    address: str = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65535)] = 9400  # + local rank; 0: any free port
    targets_file: Location | None = None  # JSON of all ranks' endpoints for Prometheus, while the job runs
    text_file: Location | None = None  # .prom file of rank 0's metrics for a node exporter, every 15 seconds
    linger_s: Annotated[NonNegative, Field(le=86400)] = (
        20.0  # seconds that the last figures wait for a scrape, where there were scrapes
    )


class Config(Section):
    """The whole configuration of a run."""

    seed: Seed = 0
    run: RunConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    text: TextConfig = TextConfig()
    ppar: PparConfig = PparConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    targets: dict[str, Location] = {}  # unseen domains, evaluated when the run has ended

    @model_validator(mode="after")
    def _prototypes_have_a_source(self) -> Config:
        needs_text = self.ppar.enabled or self.model.classifier != "linear"
        if needs_text and self.text.file is None and self.model.backbone.kind == "timm":
            raise ValueError(
                "a timm backbone has no text tower: set text.file to an .npz of names and embeddings"
            )
        return self


def load_config(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML) and validate.

    Raises:
        ConfigError: the file is missing or not a mapping, an override is malformed, or any key
            or value is wrong; the message lists every problem.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            tree = read_yaml(file.read(MAX_CHARACTERS + 1))  # enough to see that it is too long
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} holds keys and values, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin=str(path))


def parse_config(tree: dict[str, Any], origin: str = "config") -> Config:
    """Validate a tree of plain values; raises ConfigError naming every wrong key at once."""
    keys = url_keys(tree)
    if keys:
        raise ConfigError(
            f"{origin}: no key takes a URL, got one in {printable(', '.join(keys))}; mount the storage and "
            "give a path (config.yaml would keep the URL, with any credentials in it)"
        )
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        items = error.errors(include_url=False)
        problems = [problem(item) for item in items[:_PROBLEMS]]
        if len(items) > _PROBLEMS:
            problems.append(f"and {len(items) - _PROBLEMS} more problems")
        raise ConfigError(f"{origin}: {'; '.join(problems)}") from None
    if not _reads_back(config):
        raise ConfigError(
            f"{origin}: too long or too deeply nested for the config.yaml of a run (at most {MAX_CHARACTERS} "
            f"characters and {MAX_DEPTH} levels); shorten its texts, lists or model.backbone.options"
        )
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _reads_back(config: Config) -> bool:
    try:
        return Config.model_validate(read_yaml(dump_config(config))) == config
    except (yaml.YAMLError, ValidationError):
        return False


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"an override is key=value, got {shown(override)}; for example train.steps=100")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {shown(override)}: the value is not valid YAML: {one_line(error)}"
        ) from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {shown(override)}: {printable(part)} is a value, not a section")
        node[part] = node = dict(child)  # a copy: an alias may have put the same section elsewhere too
    node[parts[-1]] = value
