"""Kill and fail a save at every call it makes to the storage."""
