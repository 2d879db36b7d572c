"""Log-mels in Parquet: the schema, writing one shard, dataset.json with its statistics, and reading it all back."""
