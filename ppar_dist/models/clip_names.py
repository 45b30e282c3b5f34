"""Names of CLIP's weights: those of Hugging Face, of wrappers and of a tower alone → open_clip's."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # of data-parallel training and torch.compile
# No weights: sizes, masks, positions, counters, and the scale and bias of a loss over image-text pairs.
_OTHER = re.compile(
    r"(.*\.)?(input_resolution|context_length|vocab_size|attn_mask|position_ids|num_batches_tracked"
    r"|logit_scale|logit_bias)"
)
_HF_MARK = re.compile(r"(vision_model\.)?encoder\.layers\.\d+\.self_attn\.q_proj\.weight")
_HF_VISION_ALONE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_HF_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_HF_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # so spelled there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_HF_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}


def is_weight(name: str) -> bool:
    """Whether a tensor of this name belongs to a tower's weights."""
    return _OTHER.fullmatch(name) is None


def is_hugging_face(names: Iterable[str]) -> bool:
    """Whether these are the names of Hugging Face's CLIP, under any wrapper."""
    return any(_HF_MARK.fullmatch(name) for name in _unwrapped(names))


def open_clip_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by open_clip's names; a name that is of no known kind stays."""
    short = dict(zip(_unwrapped(tensors), tensors.values(), strict=True))
    if is_hugging_face(short):
        return _from_hugging_face(short)
    alone = not any(name.startswith("visual.") for name in short)
    if alone and ("conv1.weight" in short or any(name.startswith("trunk.") for name in short)):
        return {f"visual.{name}": value for name, value in short.items()}
    return short


def _unwrapped(names: Iterable[str]) -> list[str]:
    names = list(names)
    for wrapper in _WRAPPERS * 2:
        if names and all(name.startswith(wrapper) for name in names):
            names = [name.removeprefix(wrapper) for name in names]
    return names


def _from_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}  # query, key and value of an attention, stacked by open_clip
    for name, value in tensors.items():
        name = f"vision_model.{name}" if name.startswith(_HF_VISION_ALONE) else name
        block = _HF_BLOCK.fullmatch(name)
        if name in _HF_TRANSPOSED:
            found[_HF_TRANSPOSED[name]] = value.T
        elif block is None:
            found[_HF_NAMES.get(name, name)] = value
        elif block[3] in _HF_LAYERS:
            found[f"{_block(block)}.{_HF_LAYERS[block[3]]}.{block[4]}"] = value
        else:
            thirds.setdefault(f"{_block(block)}.attn.in_proj_{block[4]}", {})[block[3]] = value
    for name, parts in thirds.items():
        # One that is missing raises KeyError with its name.
        found[name] = torch.cat([parts[f"self_attn.{part}_proj"] for part in "qkv"])
    return found


def _block(block: re.Match[str]) -> str:
    tower = "visual.transformer" if block[1] == "vision" else "transformer"
    return f"{tower}.resblocks.{block[2]}"
