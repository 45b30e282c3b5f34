"""Which label belongs to which image below a root, as a mapping file lays it out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ppar_dist.data.prepare.finding import images_below, labels_on_disk
from ppar_dist.data.prepare.patterns import PathPattern
from ppar_dist.data.prepare.source import Domains, Pair
from ppar_dist.data.shards.writer import LONGEST_NAME, safe_key
from ppar_dist.errors import DataError
from ppar_dist.pictures import SUFFIXES

_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FORM = 'images: "images/{frame}_rgb.png" and labels: "labels/{frame}_gt.png"'


class _Placed(NamedTuple):
    """A pair and the domain that it belongs to."""

    domain: str
    pair: Pair


@dataclass(frozen=True)
class Layout:
    """Where images and labels are: patterns, or two folders whose files have the same stems but for a suffix.

    Args:
        file: the mapping file, for messages.
        name: the domain; with placeholders of ``images`` one for each of their values.

    Raises:
        DataError: the parts contradict each other.
    """

    file: Path
    name: PathPattern
    images: PathPattern
    labels: PathPattern
    suffix: str

    def __post_init__(self) -> None:
        if self.images.names and not self.labels.names:
            self._refuse("images: has placeholders and labels: has none; write both as patterns")
        for key, pattern in (("labels", self.labels), ("name", self.name)):
            if lacking := [name for name in pattern.names if name not in self.images.names]:
                self._refuse(f"{key}: has {{{lacking[0]}}}, which images: lacks; add it there")
        if self.images.names and self.suffix:
            self._refuse("label_suffix: belongs to folders, not to patterns; write it into labels:")
        if self.images.names and not self.labels.text.lower().endswith(".png"):
            self._refuse(f"labels are PNG files, labels: ends in .png, got {self.labels.text!r}")

    def domains(self, root: Path) -> Domains:
        """The pairs below a root by domain; a pair's label is the file looked for where there is none.

        Raises:
            DataError: there is no image, no label at all, or two images would have one key.
        """
        placed = list(self._placed(root))
        labels = labels_on_disk([pair.label for _, pair in placed])
        not_images = set(labels)  # where both lie in one folder
        found: dict[str, list[Pair]] = {}
        for (domain, pair), label in zip(placed, labels, strict=True):
            if pair.image not in not_images:
                found.setdefault(domain, []).append(pair._replace(label=label))
        if not found:
            raise self._no_image(root)
        _refuse_same_keys(found)
        pairs = [pair for each in found.values() for pair in each]
        if not any(pair.label.is_file() for pair in pairs):
            raise self._no_label(root, pairs)
        return dict(sorted(found.items()))

    def _placed(self, root: Path) -> Iterator[_Placed]:
        folder = root / self.images.folder
        for image in images_below(folder):
            if self.images.names:
                values = self.images.match(PurePosixPath(image.relative_to(root)))
                if values is not None:
                    yield self._by_pattern(root, image, values)
            else:
                relative = image.relative_to(folder)
                label = root / self.labels.folder / relative.with_name(f"{image.stem}{self.suffix}.png")
                key = "_".join(relative.with_suffix("").parts)
                yield _Placed(self.name.text, Pair(safe_key(key), image, label))

    def _by_pattern(self, root: Path, image: Path, values: dict[str, str]) -> _Placed:
        domain = self.name.fill(values)
        if len(domain) > LONGEST_NAME:
            self._refuse(f"a domain's name has {LONGEST_NAME} letters at most, got {domain!r}; shorten name:")
        if not _DOMAIN.fullmatch(domain):
            self._refuse(
                f"a domain's name holds letters, digits, _ and - only, got {domain!r} for {image}; "
                "rename the folder, or leave the placeholder out of name:"
            )
        label = root / self.labels.fill(values)
        return _Placed(domain, Pair(safe_key("_".join(values.values())), image, label))

    def _no_image(self, root: Path) -> DataError:
        folder = root / self.images.folder
        there = images_below(folder)
        if not there:
            return DataError(
                f"no image ({', '.join(sorted(SUFFIXES))}) below {folder}; set images: in {self.file}"
            )
        shown = there[0].relative_to(root)
        if not self.images.names or self.images.match(PurePosixPath(shown)) is not None:
            return DataError(
                f"{self.file}: images: and labels: name the same files, {shown} for one; correct one"
            )
        return DataError(
            f"no file below {root} is called {self.images.text!r}, there is {shown} for one; correct "
            f"images: in {self.file}"
        )

    def _no_label(self, root: Path, pairs: list[Pair]) -> DataError:
        """None of the images has a label: what was looked for, and what may have been meant."""
        image, label = pairs[0].image, pairs[0].label
        near = self._nearest(root, pairs[0])
        nearest = f"; the nearest is {near.relative_to(root)}" if near else ""
        remedy = "correct labels:"
        if not self.images.names:
            meant = near and near.parent == label.parent and self._meant(root, image, near, len(pairs))
            remedy = f"write both as patterns, {meant or f'such as {_FORM}'}"
        return DataError(
            f"{self.file}: none of {len(pairs)} images has a label (a PNG file). The label of "
            f"{image.relative_to(root)} would be {label.relative_to(root)}{nearest}; {remedy}"
        )

    def _nearest(self, root: Path, pair: Pair) -> Path | None:
        """The file among the labels whose place and name are most like what was looked for."""

        def likeness(path: Path) -> tuple[bool, bool, int]:
            shared = len(_shared(pair.image.stem, path.stem))
            return path.parent == pair.label.parent, path.stem.endswith(self.suffix), shared

        there = [path for path in images_below(root / self.labels.folder) if path != pair.image]
        near = max(there, key=likeness, default=None)
        return near if near and likeness(near)[-1] else None

    def _meant(self, root: Path, image: Path, near: Path, images: int) -> str | None:
        """Patterns by which the file is the image's label, if they find one for most images."""
        frame = _shared(image.stem, near.stem)
        parts = image.relative_to(root / self.images.folder).parent.parts
        folders = [f"{{folder{number or ''}}}" for number in range(len(parts))]
        patterns = [
            str(PurePosixPath(pattern.text, *folders, path.name.replace(frame, "{frame}", 1)))
            for pattern, path in ((self.images, image), (self.labels, near))
        ]
        try:
            known = [PathPattern(text, "") for text in patterns]
            meant = replace(self, images=known[0], labels=known[1], suffix="")
        except DataError:  # a brace in a name, or a label that is not a PNG
            return None
        found = sum(pair.label.is_file() for _, pair in meant._placed(root))
        if 2 * found <= images:
            return None
        return f'images: "{patterns[0]}" and labels: "{patterns[1]}" (finds {found} of {images})'

    def _refuse(self, problem: str) -> None:
        raise DataError(f"mapping file {self.file}: {problem}")


def _refuse_same_keys(domains: Domains) -> None:
    """Two files must not become one sample, nor one of them be lost."""
    for pairs in domains.values():
        seen: dict[str, Path] = {}
        for key, image, _ in pairs:
            if (other := seen.setdefault(key, image)) != image:
                raise DataError(
                    f"{other} and {image} would both have the key {key!r}; rename one, or let images: match "
                    "one of them"
                )


def _shared(one: str, other: str) -> str:
    """The longer of the start and the end that two stems have in common, in whole words."""
    start, end = _start(one, other), _start(one[::-1], other[::-1])[::-1]
    return max(start, end, key=len)


def _start(one: str, other: str) -> str:
    size = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    while size and (one[size : size + 1].isalnum() or other[size : size + 1].isalnum()):
        size -= 1
    return one[:size]
