"""Typed, strict configuration: one YAML file plus ``key=value`` overrides.

The comment of a key becomes its text in docs/configuration.md: `python docs/configuration.py` makes the page.
Unknown keys, wrong types and impossible combinations are refused when the file is read, all of them in one
message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ppar_dist.config.fields import (
    Count,
    Momentum,
    NonNegative,
    Number,
    PathField,
    Patience,
    PlainValues,
    Positive,
    Ratio,
    Seed,
    Whole,
)

MAX_SOURCES = 1024  # each has at least one of the 1024 slots that share out positions (``data.order``)


class Section(BaseModel):
    """Base of all sections: immutable, and closed to keys it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """Where the run lives."""

    dir: PathField  # folder of checkpoints, metrics, logs and results
    name: str = ""  # shown in the report


class SourceConfig(Section):
    """One labelled source domain: a folder of shards under ``data.root`` and its sampling weight."""

    name: str  # folder below data.root
    weight: Positive | None = None  # relative share of positions; None: in proportion to its size


class DataConfig(Section):
    """Source domains, their order, and the size of what the model sees."""

    root: PathField  # folder of the sources
    classes: str  # class set: roads6, cityscapes19, camvid11
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]  # names alone are enough
    size: Count = 180  # pixels of the shorter side before random scaling, and at evaluation
    crop: tuple[Count, Count] = (180, 240)  # height, width in pixels
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.1  # last part of each source, never trained on
    block: Count = 16  # consecutive samples that stay together (sequential reads)
    window: Count = 8  # blocks among which samples are permuted
    workers: Annotated[Whole, Field(ge=0)] = 1  # loader processes per rank
    max_bad_ratio: Ratio = (
        0.01  # of a domain's samples; more bad ones than that, each counted once, end the job
    )

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
    """Training augmentation; every draw is seeded by position."""

    scale: tuple[Positive, Positive] = (0.75, 1.75)  # range of the random scaling
    flip: Ratio = 0.5  # chance of a horizontal flip
    photometric: Ratio = 0.8  # chance of colour jitter
    brightness: NonNegative = 0.5  # factor drawn from 1 ± this; the next two alike
    contrast: NonNegative = 0.5  # as brightness
    saturation: NonNegative = 0.5  # as brightness
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.1  # shift drawn from ± this part of the circle
    grayscale: Ratio = 0.1  # chance of grey
    gamma: tuple[Positive, Positive] | None = (0.5, 2.0)  # drawn log-uniformly; None: off
    blur: Ratio = 0.2  # chance of a Gaussian blur

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentConfig:
        for name in ("scale", "gamma"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name} is (low, high), got {pair}; swap the two")
        return self


class BackboneConfig(Section):
    """An image tower and where its weights come from."""

    kind: Literal["open_clip", "timm"] = "open_clip"  # library that builds the tower
    name: str = "ViT-B-16"  # model name in that library
    pretrained: str | None = None  # a tag, or a checkpoint file (has a suffix); None: random initialisation
    options: PlainValues = {}  # passed to the library's constructor
    embed_dim: Count | None = None  # joint width D; only for kind: timm, whose trunk has none
    dense_stride: Count = 16  # pixels per cell of the joint features; only for kind: timm
    trainable: Literal["all", "none"] = "all"  # none: the tower is frozen
    batch_norm: Literal["frozen", "sync"] = "frozen"  # frozen: as loaded; sync: over all ranks (GPUs)
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, a third slower

    @model_validator(mode="after")
    def _width_is_known(self) -> BackboneConfig:
        if self.kind == "timm" and self.embed_dim is None:
            raise ValueError("kind: timm needs embed_dim, the width of the text embeddings (512)")
        if self.kind == "open_clip" and self.embed_dim is not None:
            raise ValueError("embed_dim comes from the open_clip model; remove it")
        return self


class DecoderConfig(Section):
    """From multi-level features to narrow pixel features."""

    kind: Literal["fpn", "aspp"] = "fpn"  # feature pyramid, or atrous pyramid pooling
    width: Count = 96  # channels of the pixel features


class TextConfig(Section):
    """Original text prototypes (OTP): a file of embeddings, or the backbone's own text tower."""

    file: PathField | None = None  # .npz with `names` (N,) and `embeddings` (N, D)
    templates: tuple[str, ...] = ("a photo of a {}.",)  # for the text tower
    center: bool = True  # subtract the mean of all prototypes


class ModelConfig(Section):
    """The segmentor: backbone, decoder and classifier."""

    backbone: BackboneConfig
    decoder: DecoderConfig = DecoderConfig()
    classifier: Literal["otp", "otp_init", "linear"] = "otp"  # fixed text, trained from it, or plain
    logit_scale: Positive = 20.0  # factor on cosine similarities


class AlignmentConfig(Section):
    """Progressive alignment, easy to difficult."""

    enabled: bool = True  # the alignment losses
    features: Literal["dense", "embedding"] = "dense"  # the encoder's joint features or the decoder's
    boundaries: tuple[Ratio, Ratio, Ratio] = (0.1, 0.3, 0.5)  # progress at which stages 1, 2, 3 begin
    keep_earlier: bool = True  # later stages keep the losses of earlier ones
    temperature: Positive = 0.1  # of the softmax over prototypes
    text_weight: NonNegative = 0.1  # of the loss against text prototypes
    visual_weight: NonNegative = 0.1  # of the loss against visual text prototypes
    pixel_weight: NonNegative = 0.1  # of the loss of single cells
    admit_from: Annotated[Number, Field(gt=0, le=1)] = 0.3  # share of cells, easiest first, as stage 3 begins
    difficulty_bins: Annotated[Whole, Field(ge=2)] = 64  # of the histogram that ranks cells by difficulty

    @model_validator(mode="after")
    def _boundaries_rise(self) -> AlignmentConfig:
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries rise from stage to stage, got {self.boundaries}")
        return self


class BankConfig(Section):
    """The prototype bank."""

    momentum: Momentum = 0.9  # of the moving average
    teacher: Literal["student", "ema", "frozen"] = "student"  # whose features feed the bank
    teacher_every: Count = 1  # steps between passes of the teacher (frozen, ema)
    teacher_momentum: Momentum = 0.99  # of the ema teacher


class VtpConfig(Section):
    """Visual text prototypes; disabled means v_k = t_k everywhere."""

    enabled: bool = True  # false: text prototypes alone
    alpha_max: Ratio = 0.5  # largest share of the visual prototype
    count_0: Positive = 2000.0  # cells of a class after which 63 % of alpha_max is reached


class TrustConfig(Section):
    """Trust in the labels of each source and class, from what the other sources say before the first step."""

    enabled: bool = False  # false: all labels are trusted in full
    images: Count = 48  # of each source that are looked at
    tolerance: Annotated[Number, Field(gt=0, le=1)] = 0.85  # share of the others' agreement that is enough
    gamma: NonNegative = 20.0  # steepness below it: (agreement / enough)^γ


class ReweightingConfig(Section):
    """Reliability weights of source samples."""

    enabled: bool = True  # false: every sample weighs 1
    start_stage: Annotated[Whole, Field(ge=0, le=3)] = 1  # of alignment
    beta: NonNegative = 1.5  # steepness: exp(β · standardised reliability)
    min: Positive = 0.05  # smallest weight
    max: Positive = 1.5  # largest weight
    min_spread: Positive = 1.0  # nats; floor of σ_r, so that clean sources keep nearly equal weights
    momentum: Momentum = 0.95  # of mean and spread of reliabilities
    trust: TrustConfig = TrustConfig()

    @model_validator(mode="after")
    def _clip_holds_one(self) -> ReweightingConfig:
        if not self.min <= 1.0 <= self.max:
            raise ValueError(f"min <= 1 <= max, got min={self.min}, max={self.max}")
        return self


class PparConfig(Section):
    """The method; ``enabled: false`` is plain fine-tuning with the same model, data and budget."""

    enabled: bool = True  # the whole method
    min_purity: Annotated[Number, Field(gt=0, le=1)] = 0.75  # share of one class in a cell that has a class
    alignment: AlignmentConfig = AlignmentConfig()
    bank: BankConfig = BankConfig()
    vtp: VtpConfig = VtpConfig()
    reweighting: ReweightingConfig = ReweightingConfig()


class RefitConfig(Section):
    """The last stage: classifiers fitted to the sources' images as they are, without augmentation."""

    linear: bool = False  # fit the linear classifier again
    prototypes: bool = False  # add the logits of visual prototypes to a prediction
    images: Count = 48  # of each source
    share: NonNegative = 0.5  # factor on the prototypes' logits


class OptimConfig(Section):
    """AdamW with linear warm-up and polynomial decay."""

    lr: Positive = 1e-3  # decoder and classifier
    backbone_lr: NonNegative = 1e-3  # image tower; 0 leaves it as loaded
    weight_decay: NonNegative = 0.05  # of matrices and convolutions
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # of Adam
    warmup_ratio: Ratio = 0.05  # share of the steps with rising rate
    power: Positive = 0.9  # of the polynomial decay
    clip_grad_norm: NonNegative = 1.0  # 0: off


class TrainConfig(Section):
    """Budget and batch."""

    steps: Count  # optimiser steps of the whole run
    global_batch: Count  # images per step over all ranks
    micro_batch: Count | None = None  # at most so many images per forward pass and rank; None: all at once
    log_every: Count = 10  # steps between lines of metrics
    eval_every: Annotated[Whole, Field(ge=0)] = 0  # on held-out source data; 0: only at the end
    ledger: bool = False  # write down the key of every sample trained on


class EngineConfig(Section):
    """DeepSpeed, and the device below it."""

    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto: GPUs where the job has any
    zero_stage: Literal[0, 1, 2] = 0  # what ranks share out: nothing, moments, gradients too
    precision: Literal["fp32", "bf16"] = "fp32"  # of forward and backward pass; parameters are fp32
    tf32: bool = False  # fp32 products and convolutions of GPUs from Ampere on round their inputs to 10 bits
    compile: bool = False  # torch.compile of the tower's blocks and the decoder; needs a C++ compiler
    peak_tflops: Positive | None = (
        None  # of a rank's device, for MFU; None: of its data sheet in bf16, no MFU where that is unknown
    )


class CheckpointConfig(Section):
    """What is kept."""

    every: Annotated[Whole, Field(ge=0)] = 200  # steps; 0: only at the end
    keep_last: Count = 2  # newest checkpoints that stay
    keep_every: Annotated[Whole, Field(ge=0)] = 0  # steps; those at its multiples stay for good; 0: none
    keep_best: bool = True  # the best on held-out data stays too
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

    enabled: bool = True  # serve metrics
    address: str = "127.0.0.1"  # the endpoint listens here
    port: Annotated[Whole, Field(ge=0, le=65535)] | None = (
        None  # + local rank; 0: any free port; null: 18400, or any free port where that is in use
    )
    targets_file: PathField | None = None  # JSON of all ranks' endpoints for Prometheus, while the job runs
    text_file: PathField | None = None  # .prom file of rank 0's metrics for a node exporter, every 15 seconds
    linger_s: Annotated[NonNegative, Field(le=86400)] = (
        20.0  # seconds that the last figures wait for a scrape, where there were scrapes
    )
    profile_steps: Annotated[Whole, Field(ge=0, le=100)] = (
        0  # steps, from the fifth after a start on, that each rank traces into RUN/profile; 0: none
    )


class Config(Section):
    """The whole configuration of a run."""

    seed: Seed = 0  # of every random draw
    run: RunConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    text: TextConfig = TextConfig()
    ppar: PparConfig = PparConfig()
    refit: RefitConfig = RefitConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    targets: dict[str, PathField] = {}  # unseen domains, evaluated when the run has ended

    @model_validator(mode="after")
    def _prototypes_have_a_source(self) -> Config:
        if self.refit.linear and self.model.classifier != "linear":
            raise ValueError(
                f"refit.linear fits model.classifier=linear again, got {self.model.classifier}; "
                "set refit.linear=false"
            )
        needs_text = self.ppar.enabled or self.model.classifier != "linear"
        if needs_text and self.text.file is None and self.model.backbone.kind == "timm":
            raise ValueError(
                "a timm backbone has no text tower: set text.file to an .npz of names and embeddings"
            )
        return self
