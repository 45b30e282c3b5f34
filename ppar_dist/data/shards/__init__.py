"""A domain on disk: WebDataset shards and their index. Imports nothing else of ``data``."""
