"""Foggy Cityscapes: the images of Cityscapes with fog computed into them, of three densities.

Download (registration needed): https://www.cityscapes-dataset.com/downloads/ , the package
``leftImg8bit_trainvaltest_foggy.zip`` and ``gtFine_trainvaltest.zip`` of Cityscapes, unpacked into one
folder. Licence: Cityscapes licence, non-commercial research; cite Sakaridis et al., "Semantic foggy scene
understanding with synthetic data", IJCV 2018.

The density beta is the attenuation coefficient in 1/m: at 0.02 one sees 150 m, at 0.01 300 m, at 0.005 600 m.
Each is a data set here, as its images share one folder and one set of labels.
"""

from __future__ import annotations

from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.layouts import Table, cityscapes_coded, tabled
from ppar_dist.data.prepare.source import Source


def source(name: str, beta: str) -> Source:
    """The data set of one density, as it stands in the names of its images."""
    forms = cityscapes_coded(
        "leftImg8bit_foggy/{split}/{city}/{frame}_leftImg8bit_foggy_beta_" + beta + ".png",
        "gtFine/{split}/{city}/{frame}_gtFine",
        dict(enumerate(cityscapes.NAMES)),
    )
    return tabled(
        Table(name, forms, splits=cityscapes.SPLITS),
        "https://www.cityscapes-dataset.com/downloads/ (leftImg8bit_trainvaltest_foggy.zip)",
        parts=cityscapes.BY_CITY,
        told=False,  # the other densities lie beside it
    )
