"""Data: shards and their index, the order of samples, augmentation, and the loader built from them."""
