"""The demo data folder, made offline from pip packages: real medical images, open medical text, a tokenizer.

`build.py` is the entry. The rest of the package reads the folder it writes and knows nothing of it.
"""
