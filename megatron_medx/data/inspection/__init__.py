"""Looking at data as training sees them: pages of rows (show.py, preview.py) and what the loader feeds (bench.py)."""
