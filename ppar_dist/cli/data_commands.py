"""Commands that make data: ``prepare``, ``classes``, ``synth``, ``text``, ``index``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ppar_dist.cli.app import Classes, Range, Size, app
from ppar_dist.cli.progress import count_images
from ppar_dist.errors import UserError

if TYPE_CHECKING:
    from ppar_dist.class_sets import ClassSet
    from ppar_dist.data.shards.parts import Part


@app.command
def prepare(
    dataset: str,
    /,
    *,
    root: Path,
    out: Path,
    classes: Classes,
    limit: int | None = None,
    mapping: Path | None = None,
    exclude: list[str] | None = None,
    skip_bad: bool = False,
    jpeg: int | None = None,
    value_range: Range | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    split_by: str | None = None,
    part: str | None = None,
    merge: bool = False,
) -> None:
    """Turn a data set as downloaded into shards with an index.

    Args:
        dataset: camvid, labelmefacade, cityscapes, gta5, synthia, urbansyn, bdd100k, mapillary, mapillary_v2,
            idd, idd_lite, wilddash, acdc, dark_zurich, nighttime_driving, foggy_cityscapes,
            foggy_cityscapes_0_01, foggy_cityscapes_0_005, folder
        root: where the data set was unpacked
        out: folder for the domains
        limit: only so many images per domain
        mapping: for folder: YAML file of label values and names
        exclude: key of a sample to leave out; may be repeated
        skip_bad: go on without bad pairs, which are listed
        jpeg: quality at which images that are not JPEG become that (default: images stay as they came)
        overwrite: replace a domain that was made with other options
        processes: that work at the same time (default: one a core); the result is the same
        split_by: sequence, city or condition: a domain for each; or none
        part: i/n: do the i-th of n parts of the work only, here or on another machine
        merge: write the domains of what all parts have done
    """
    from ppar_dist.data.prepare import Options, prepare, prepare_part

    options = Options(
        limit, mapping, exclude or (), skip_bad, jpeg, value_range, overwrite, processes, split_by
    )
    tell = functools.partial(print, file=sys.stderr)
    own = _part(part, merge, processes)
    if own is not None:
        print(prepare_part(dataset, root, out, classes, own, options, progress=count_images, tell=tell))
        return
    for folder in prepare(
        dataset, root, out, classes, options, progress=count_images, tell=tell, merge=merge
    ):
        print(folder)


@app.command
def classes(name: str | None = None, /, *, dataset: str | None = None) -> None:
    """List the class sets, print one as a YAML file to copy, or show what labels count as in it.

    Args:
        name: one that is listed, or a YAML file, which is checked (default: list those of the package)
        dataset: show the labels of this data set of prepare, and the class that each counts as
    """
    from ppar_dist.class_sets import built_in, built_in_file, class_set
    from ppar_dist.config.class_file import is_class_file

    if dataset is not None:
        _print_labels(dataset, name)
    elif name is None:
        for each, file in built_in().items():
            about = file.read_text("utf-8").partition("\n")[0].lstrip("# ")
            print(f"{each:<14}{class_set(each).num_classes:>3} classes  {about}")
    elif is_class_file(name):
        _checked(name)
        print(Path(name.partition("@")[0]).read_text("utf-8"), end="")
    else:
        print(built_in_file(name).read_text("utf-8"), end="")


def _checked(reference: str) -> ClassSet:
    """A class set whose native names are those of data sets; what looks wrong in it is told."""
    from ppar_dist.class_sets import class_set
    from ppar_dist.data.prepare.native_names import check_native_names, unknown_labels

    found = class_set(reference)
    check_native_names(reference, found)
    for line in unknown_labels(reference, found):
        print(line, file=sys.stderr)
    return found


def _print_labels(dataset: str, reference: str | None) -> None:
    from ppar_dist.data.prepare.known import labelled_source
    from ppar_dist.data.prepare.native_names import counted

    classes = _checked(reference) if reference is not None else None
    rows = [("label", "counts as" if classes else "", "in labels: of a class set, if not the same")]
    for row in counted(labelled_source(dataset), classes):
        rows.append((row.native, (row.counts_as or "-") if classes else "", row.known))
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    for native, counts_as, known in rows:
        print(f"{native:<{left}}  {counts_as:<{middle}}  {known}".rstrip())


@app.command
def synth(*, out: Path, samples: int = 120, size: Size = (180, 240), seed: int = 0) -> None:
    """Render synthetic street scenes with exact labels.

    Args:
        out: folder for the domains
        samples: per domain
        seed: of all that is drawn
    """
    from ppar_dist.synthetic import synth

    for folder in synth(out, seed, samples, size, progress=count_images):
        print(folder)


@app.command
def text(
    *,
    classes: Classes,
    out: Path,
    model: str = "ViT-B-16-quickgelu",
    pretrained: str = "openai",
    template: list[str] | None = None,
) -> None:
    """Write a CLIP text tower's class embeddings to a file.

    Args:
        out: the .npz file to write
        model: open_clip model name
        pretrained: open_clip tag or a checkpoint file
        template: such as 'a photo of a {}.'; may be repeated
    """
    from ppar_dist.class_sets import class_set
    from ppar_dist.config.model_section import BackboneConfig, TextConfig
    from ppar_dist.models.backbone import build_backbone
    from ppar_dist.models.text import check_templates, write_embeddings

    templates = template or TextConfig().templates
    check_templates(templates, "--template")
    names = [prompt for prompts in class_set(classes).prompts for prompt in prompts]
    backbone = build_backbone(BackboneConfig(name=model, pretrained=pretrained))
    encoder = backbone.text_tower()
    if encoder is None:
        raise UserError(f"{model} has no text tower; choose another --model")
    write_embeddings(out, names, templates, encoder)
    print(f"{out}: {len(names)} names of {classes}, {backbone.embed_dim} wide")


@app.command
def index(
    folder: Path,
    /,
    *,
    classes: Classes,
    max_bad_ratio: float = 0.0,
    image_ending: list[str] | None = None,
    label_ending: list[str] | None = None,
    processes: int | None = None,
    part: str | None = None,
    merge: bool = False,
) -> None:
    """Make the index of existing shards.

    Args:
        folder: a domain's folder of tar shards
        max_bad_ratio: leave bad samples out, up to this share of all, and list them in quarantine.jsonl
        image_ending: how names of images end, such as png (default: jpg and others); may be repeated
        label_ending: how names of labels end, such as seg.png (default: png and others); may be repeated
        processes: that work at the same time (default: one a core); the result is the same
        part: i/n: check the i-th of n parts of the shards only, here or on another machine
        merge: make the index of what all parts have checked
    """
    from ppar_dist.data.shards.build_index import index_folder, index_part
    from ppar_dist.data.shards.grouping import endings_of

    if not 0 <= max_bad_ratio <= 1:
        raise UserError(f"--max-bad-ratio is a share from 0 to 1, got {max_bad_ratio}")
    endings = endings_of(image_ending or (), label_ending or ())
    own = _part(part, merge, processes)
    if own is not None:
        print(f"{folder}: {index_part(folder, classes, own, endings=endings, processes=processes)}")
        return
    index, findings = index_folder(
        folder, classes, max_bad_ratio=max_bad_ratio, endings=endings, processes=processes, merge=merge
    )
    for line in findings.lines():
        print(f"{folder}: {line}", file=sys.stderr)
    print(f"{folder}: {len(index)} samples in {len(index.shards)} shards{findings.left_out()}")


def _part(text: str | None, merge: bool, processes: int | None) -> Part | None:
    """The part that is asked for; refuses what contradicts itself."""
    from ppar_dist.data.shards.parts import read_part

    if processes is not None and processes < 1:
        raise UserError(f"--processes is at least 1, got {processes}")
    if text is not None and merge:
        raise UserError("--part does a part and --merge all that is left then; give one of the two")
    return None if text is None else read_part(text)
