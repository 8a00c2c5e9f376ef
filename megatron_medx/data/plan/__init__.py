"""Which samples form row j of a run: a pure function of the data folders, their mixture, a seed and j.

One process prepares the tables (prepare.py: mixture.py, table.py, budget.py), every rank plans with them (row_plan.py:
stream.py, packing.py). Neither torch nor transformers is needed.
"""
