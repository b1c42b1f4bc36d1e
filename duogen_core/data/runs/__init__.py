"""A run of a data engine: its folder, its shards, its log, its report, on processes or on Ray."""
