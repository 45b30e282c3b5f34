"""Ranks and collectives: the only door to torch.distributed."""
