"""PPAR, prototypical progressive alignment and reweighting: a reconstruction; see README, Method."""
