"""Data sets built from raw captioned pictures: counted by queries, cleaned, balanced, written as shards. No torch."""
