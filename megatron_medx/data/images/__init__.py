"""Image files as 8-bit RGB pictures.

Stored values become physical values with their unit, a window maps those to display values, and only then are they
8 bits: a CT of 12 bits scaled to 8 first would lose what its window shows.

Reading order: files.py (the entry), image_file.py, view.py, windows.py, orientation.py, dicom.py, nifti.py; for the
build volumes.py, frames.py, slides.py, deidentify.py, kept_attributes.py.
"""
