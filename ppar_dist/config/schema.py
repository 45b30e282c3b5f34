"""Typed, strict configuration: one YAML file plus ``key=value`` overrides.

The comment of a key becomes its text in docs/configuration.md: `python docs/configuration.py` makes the page.
Unknown keys, wrong types and impossible combinations are refused when the file is read, all of them in one
message.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ppar_dist.config.data_section import AugmentConfig, DataConfig
from ppar_dist.config.evaluation_section import EvaluationConfig
from ppar_dist.config.fields import (
    Count,
    LocationField,
    Momentum,
    NonNegative,
    Number,
    PathField,
    Patience,
    Positive,
    Ratio,
    Seed,
    Whole,
)
from ppar_dist.config.method_section import PparConfig, RefitConfig
from ppar_dist.config.model_section import ModelConfig, TextConfig
from ppar_dist.config.section import Section
from ppar_dist.storage.location import WRITABLE, Location, Remote


class RunConfig(Section):
    """Where the run lives."""

    dir: PathField  # folder of checkpoints, metrics, logs and results
    name: str = ""  # shown in the report


class OptimConfig(Section):
    """AdamW with linear warm-up and polynomial decay."""

    lr: Positive = 1e-3  # decoder and classifier
    backbone_lr: NonNegative = 1e-3  # image tower; 0 leaves it as loaded
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = (
        1.0  # factor on backbone_lr for each block that lies above; 1: the same rate in the whole tower
    )
    weight_decay: NonNegative = 0.05  # of matrices and convolutions
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # of Adam
    warmup_ratio: Ratio = 0.05  # share of the steps with rising rate
    power: Positive = 0.9  # of the polynomial decay
    clip_grad_norm: NonNegative = 1.0  # 0: off


class StopEarlyConfig(Section):
    """An end before the last step, when scores on held-out source data do not rise any more."""

    patience: Count | None = None  # evaluations in a row without a rise after which the run ends; null: never
    min_delta: Ratio = 0.0  # mIoU, from 0 to 1, that counts as a rise


class TrainConfig(Section):
    """Budget and batch."""

    steps: Count  # optimiser steps of the whole run
    global_batch: Count  # images per step over all ranks
    micro_batch: Count | None = None  # at most so many images per forward pass and rank; None: all at once
    log_every: Count = 10  # steps between lines of metrics
    eval_every: Annotated[Whole, Field(ge=0)] = 0  # on held-out source data; 0: only at the end
    ledger: bool = False  # write down the key of every sample trained on
    weight_average: Momentum | None = (
        None  # m of a moving average of the weights, θ̄ ← m·θ̄ + (1−m)·θ at every step; null: none is kept
    )
    stop_early: StopEarlyConfig = StopEarlyConfig()

    @model_validator(mode="after")
    def _early_stops_have_scores(self) -> TrainConfig:
        if self.stop_early.patience is not None and self.eval_every == 0:
            raise ValueError(
                "stop_early.patience counts evaluations on held-out source data: set train.eval_every, or "
                "remove it"
            )
        return self


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
    remote: LocationField | None = None  # a URL under which checkpoints are kept as well; null: none is
    background: bool = True  # written by a thread from a copy in memory, while training goes on

    @field_validator("remote")
    @classmethod
    def _remote_is_written_to(cls, value: Location | None) -> Location | None:
        if value is not None and (not isinstance(value, Remote) or value.scheme not in WRITABLE):
            raise ValueError("expected the URL of a prefix, s3:// or gs://")
        return value


class FaultsConfig(Section):
    """How long a job waits, and how often it tries again, before it gives up."""

    grace_s: Patience = 120.0  # seconds from a preemption signal to a forced exit; less than the scheduler's
    stall_s: Patience = 600.0  # seconds in one phase of a step after which a rank counts as hung
    peer_s: Patience = 60.0  # seconds of silence after which a rank counts as dead
    storage_s: Patience = 120.0  # seconds that a request to object storage is tried again
    max_non_finite: Count = 5  # steps in a row without a finite result before the run rolls back
    max_rollbacks: Annotated[Whole, Field(ge=0)] = 3  # in a run; the next one ends it


TrackerName = Literal["tensorboard", "csv", "mlflow", "wandb"]


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
    trackers: tuple[TrackerName, ...] = ()  # where rank 0's figures go besides
    project: str = "ppar_dist"  # of W&B; the experiment of MLflow


class Config(Section):
    """The whole configuration of a run."""

    seed: Seed = 0  # of every random draw
    init_from: LocationField | None = None  # a run or checkpoint whose weights a new run begins with
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
    evaluation: EvaluationConfig = EvaluationConfig()
    targets: dict[str, LocationField] = Field(default={})  # unseen domains, evaluated when the run has ended

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

    @model_validator(mode="after")
    def _early_stops_have_data(self) -> Config:
        if self.train.stop_early.patience is not None and self.data.holdout == 0:
            raise ValueError("train.stop_early needs held-out source data: set data.holdout, or remove it")
        return self
