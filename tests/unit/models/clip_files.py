"""Weights of a tiny open_clip model, in the forms that files of CLIP weights have."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
_NAMES = (  # of open_clip, of Hugging Face; each begins or continues a name
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def torchscript(model: nn.Module, path: Path, half: bool = True, openai: bool = True) -> Path:
    """As OpenAI published its weights: traced, in half precision, with three numbers as buffers."""
    model = model.requires_grad_(False).eval()
    for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
        if openai:
            vars(model).pop(name, None)  # open_clip has it as a plain number
            model.register_buffer(name, torch.tensor(value))
    images, tokens = torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace does not record
        traced = torch.jit.trace(model, (images, tokens), check_trace=False)
        torch.jit.save(traced.half() if half else traced, path)
    return path


def hugging_face(state: State) -> State:
    """The names of CLIPModel."""
    found: State = {}
    for name, value in state.items():
        if name in ("visual.proj", "text_projection"):
            found[f"{name.replace('.proj', '_projection')}.weight"] = value.T.contiguous()
            continue
        inner = name
        for ours, theirs in _NAMES:
            if (inner.startswith(ours) and not ours.startswith(".")) or (
                ours.startswith(".") and ours in inner
            ):
                inner = inner.replace(ours, theirs, 1)
        if ".attn.in_proj_" in inner:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                key = inner.replace(".attn.in_proj_", f".self_attn.{part}_proj.")
                found[key] = third.clone()
        else:
            found[inner] = value
    return found


def write(state: State, path: Path, **around: object) -> Path:
    """By the suffix; ``around`` are entries beside ``state_dict``."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, **around} if around else state, path)
    return path


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)
