"""PPAR: prototypical progressive alignment and reweighting for segmentation on unseen domains."""

__version__ = "0.1.0"
