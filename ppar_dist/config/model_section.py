"""Sections of the model: backbone, decoder, classifier and text prototypes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ppar_dist.config.fields import Count, LocationField, NonNegative, PlainValues, Positive
from ppar_dist.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters of the tower's layers; only with trainable: lora, and with the extra `lora`."""

    kind: Literal["lora", "rslora", "dora"] = (
        "lora"  # rslora: scaled by α/√r; dora: lengths of a matrix's rows learn by themselves
    )
    rank: Count = 8  # r, of the product B·A that is added to a layer's matrix
    alpha: Positive = 8.0  # α: the product is scaled by α/r
    dropout: NonNegative = 0.0  # 0 only: other numbers of ranks would draw other numbers
    targets: tuple[str, ...] | None = (
        None  # patterns of layers' names in the tower, as "*.mlp.*"; null: all of its blocks that can learn
    )

    @model_validator(mode="after")
    def _draws_nothing(self) -> LoraConfig:
        if self.dropout > 0:
            raise ValueError(
                f"dropout is 0, got {self.dropout:g}: its draws would depend on the number of ranks, and the "
                "run with it; against overfitting take a smaller rank or more optim.weight_decay"
            )
        return self


class BackboneConfig(Section):
    """An image tower and where its weights come from."""

    kind: Literal["open_clip", "timm"] = "open_clip"  # library that builds the tower
    name: str = "ViT-B-16"  # model name in that library
    pretrained: str | None = None  # a tag, or a checkpoint file (has a suffix); None: random initialisation
    options: PlainValues = Field(default={})  # passed to the library's constructor
    embed_dim: Count | None = None  # joint width D; only for kind: timm, whose trunk has none
    dense_stride: Count = 16  # pixels per cell of the joint features; only for kind: timm
    trainable: Literal["all", "none", "last", "norm", "lora"] = (
        "all"  # none: the tower is frozen; but for its last blocks (last), norms (norm), adapters (lora)
    )
    last_blocks: Count | None = None  # that train, and what comes behind them; only with trainable: last
    lora: LoraConfig = LoraConfig()
    frozen_dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of the tower's matrices that do not train, in memory and in checkpoints
    )
    batch_norm: Literal["frozen", "sync"] = "frozen"  # frozen: as loaded; sync: over all ranks (GPUs)
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, a third slower

    @model_validator(mode="after")
    def _width_is_known(self) -> BackboneConfig:
        if self.kind == "timm" and self.embed_dim is None:
            raise ValueError("kind: timm needs embed_dim, the width of the text embeddings (512)")
        if self.kind == "open_clip" and self.embed_dim is not None:
            raise ValueError("embed_dim comes from the open_clip model; remove it")
        return self

    @model_validator(mode="after")
    def _what_trains_is_known(self) -> BackboneConfig:
        if self.trainable == "last" and self.last_blocks is None:
            raise ValueError("trainable: last needs last_blocks, the number of blocks that train")
        if self.trainable != "last" and self.last_blocks is not None:
            raise ValueError(
                f"last_blocks goes with trainable: last, not {self.trainable}; remove one of them"
            )
        if self.trainable != "lora" and self.lora != LoraConfig():
            raise ValueError(f"lora goes with trainable: lora, not {self.trainable}; remove one of them")
        if self.trainable == "all" and self.frozen_dtype != "float32":
            raise ValueError(
                f"frozen_dtype: {self.frozen_dtype} goes with a frozen tower, not with trainable: all; "
                "remove it, or set trainable to none, last, norm or lora"
            )
        return self


class DecoderConfig(Section):
    """From multi-level features to narrow pixel features."""

    kind: Literal["fpn", "aspp", "upernet", "segformer", "dpt"] = "fpn"  # the last three: extra `decoders`
    width: Count = 96  # channels of the pixel features


class TextConfig(Section):
    """Original text prototypes (OTP): a file of embeddings, or the backbone's own text tower."""

    file: LocationField | None = None  # .npz with `names` (N,) and `embeddings` (N, D)
    templates: tuple[str, ...] = ("a photo of a {}.",)  # for the text tower
    center: bool = True  # subtract the mean of all prototypes


class ModelConfig(Section):
    """The segmentor: backbone, decoder and classifier."""

    backbone: BackboneConfig
    decoder: DecoderConfig = DecoderConfig()
    classifier: Literal["otp", "otp_init", "linear"] = "otp"  # fixed text, trained from it, or plain
    logit_scale: Positive = 20.0  # factor on cosine similarities
