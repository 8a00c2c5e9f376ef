"""`medx launch`: a recipe submitted to a cluster from a workstation."""
